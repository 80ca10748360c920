// SPDX-License-Identifier: GPL-2.0

//! The `this_cpu` operations.

use super::{
    this_cpu::ThisCpu,
    var::Offset, //
};

mod generic;

pub(super) use generic::{
    per_cpu_ptr,
    this_cpu_ptr, //
};
