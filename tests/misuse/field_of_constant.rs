// SPDX-License-Identifier: GPL-2.0

//! A constant whose name the macro uses must not change the type of a field.
//!
//! error[E0530]

use core::marker::PhantomData;
use kernel::percpu::PerCpu;
use kernel::percpu_field;
use kernel::preempt::PreemptGuard;

#[derive(PartialEq, Eq)]
pub struct Token<'a>(PhantomData<fn(&'a u8) -> &'a u8>);

#[derive(PartialEq, Eq)]
pub struct Entry<'a> {
    pub token: Token<'a>,
}

#[cfg(misuse)]
#[allow(non_upper_case_globals)] // The macro uses this name.
const value: &Entry<'static> = &Entry {
    token: Token(PhantomData),
};

#[cfg(misuse)]
type Any<'a> = Entry<'a>;
#[cfg(not(misuse))]
type Any<'a> = Entry<'static>;

pub fn look<'a>(
    entries: &PerCpu<Any<'a>>,
    guard: &PreemptGuard,
    see: &mut dyn FnMut(&Token<'static>),
) {
    see(entries.project(percpu_field!(Any<'_>, token)).get(guard));
}
