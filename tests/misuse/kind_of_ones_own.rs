// SPDX-License-Identifier: GPL-2.0

//! The library relies on what the two kinds mean, so no other crate can add one.
//!
//! error[E0277]

pub enum Immortal {}

#[cfg(misuse)]
impl percpu_ref::Kind for Immortal {}

pub fn known<K: percpu_ref::Kind>() {}

pub fn use_known() {
    known::<percpu_ref::Once>();
}
