// SPDX-License-Identifier: GPL-2.0

//! Explores all interleavings of a few threads that use the library, by `loom`; see scripts/model.

#![feature(generic_arg_infer)]

pub use kernel::*;

// A copy of `rust/kernel`, with another `rcu/arch.rs`, and without the listing.
#[path = "../../build/model/kernel"]
mod library {
    pub mod percpu;
    pub mod preempt;

    pub mod sync {
        pub use kernel::sync::*;

        pub mod percpu_ref;

        pub mod rcu {
            pub use kernel::sync::rcu::*;

            pub(crate) mod arch;
            mod boxed;
            mod callback;
            mod cell;
            pub mod unload;

            pub use boxed::{RcuAllocator, RcuBox};
            pub(crate) use callback::impl_rcu_pointer;
            pub use callback::{
                call, call_hurry, call_tasks, RcuCallback, RcuCallbackBox, RcuHead, RcuPointer,
            };
            pub use cell::RcuCell;
        }
    }
}

pub use library::{
    percpu, preempt,
    sync::{self, rcu},
};

mod scenarios;

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Instant,
};

static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);

/// Explores the scenario that the argument names, or lists the scenarios if there is no argument.
fn main() {
    let Some(name) = std::env::args().nth(1) else {
        scenarios::ALL.iter().for_each(|scenario| println!("{}", scenario.name));
        return;
    };
    let scenario = scenarios::ALL
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap_or_else(|| panic!("there is no scenario {name}"));
    let start = Instant::now();

    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = scenario.preemptions;
    builder.max_branches = 20_000;
    // The number of executions after which the limit is checked.
    builder.checkpoint_interval = 1000;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, SeqCst);
        scenarios::SEEN.clear();
        (scenario.check)(world::run(scenario.atomics, scenario.setup));
    });
    let executions = EXECUTIONS.load(SeqCst);
    println!(
        "{executions} executions, {}, {} s",
        match (builder.max_permutations, scenario.preemptions) {
            (Some(max), _) if executions >= max - 1 => "the first ones".into(),
            (_, Some(n)) => format!("all with at most {n} preemptions"),
            _ => "all".into(),
        },
        start.elapsed().as_secs()
    );
}
