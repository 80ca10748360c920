// SPDX-License-Identifier: GPL-2.0

//! There are two kinds of references, and the library relies on what they mean.
//!
//! error[E0277]

pub enum Immortal {}

#[cfg(misuse)]
impl percpu_ref::Kind for Immortal {}

pub fn known<K: percpu_ref::Kind>() {}

pub fn use_known() {
    known::<percpu_ref::Once>();
}
