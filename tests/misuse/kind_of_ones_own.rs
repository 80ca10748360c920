// SPDX-License-Identifier: GPL-2.0

//! The library relies on the meaning of the two kinds, so other crates cannot add a kind.
//!
//! error[E0277]

pub enum Immortal {}

#[cfg(misuse)]
impl kernel::sync::percpu_ref::Kind for Immortal {}

pub fn known<K: kernel::sync::percpu_ref::Kind>() {}

pub fn use_known() {
    known::<kernel::sync::percpu_ref::Once>();
}
