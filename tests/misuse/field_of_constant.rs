// SPDX-License-Identifier: GPL-2.0

//! The type of a field is that of the structure's, whatever is called `value` where it is named.
//!
//! error[E0530]

use core::marker::PhantomData;
use kernel::percpu::PerCpu;
use kernel::percpu_field;

#[derive(PartialEq, Eq)]
pub struct Token<'a>(PhantomData<fn(&'a u8) -> &'a u8>);

#[derive(PartialEq, Eq)]
pub struct Entry<'a> {
    pub token: Token<'a>,
}

#[cfg(misuse)]
#[allow(non_upper_case_globals)]
const value: &Entry<'static> = &Entry {
    token: Token(PhantomData),
};

pub fn look(entries: &PerCpu<Entry<'static>>) {
    let _ = entries.project(percpu_field!(Entry<'_>, token));
}
