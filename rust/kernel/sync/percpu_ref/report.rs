// SPDX-License-Identifier: GPL-2.0

//! What `Debug` and messages in the log say of a count.

use super::{
    count::Count,
    holder,
    state::LIVES_MASK,
    unload::{
        Class,
        Running, //
    },
    value::{
        self,
        is_valid,
        is_zero, //
    },
    word::{
        BUSY,
        DEAD,
        FORCE, //
    }, //
};
use crate::{
    bindings,
    fmt,
    prelude::*,
    sync::atomic::{
        Acquire,
        Relaxed, //
    },
    time::Delta,
    warn_on, //
};

impl Count {
    /// Returns the seconds since this life was killed, or `None` if it was not killed.
    ///
    /// While a kill is in flight, the result may be that of the last life.
    pub(super) fn killed_ago(&self) -> Option<u32> {
        // `Acquire`: the time is read after the flag. If the object lives once, the time was stored
        // before the flag (litmus: killed-ago).
        let is_dying = self.word.load(Acquire).has(DEAD);
        let killed = self.killed_at.load(Relaxed);
        (is_dying && killed != 0).then(|| seconds().wrapping_sub(killed))
    }

    /// Returns the names of the state and the mode, for `Debug` and for messages.
    pub(super) fn describe(&self) -> (&'static str, &'static str) {
        let state = self.state.load(Relaxed);
        let word = self.word.load(Relaxed);
        let value = self.atomic.load(Relaxed);

        let state = if !is_valid(value) {
            "leaked"
        } else if !word.has(DEAD) {
            "live"
        } else if is_zero(value) && state & LIVES_MASK != 0 {
            "zero, in its release"
        } else if is_zero(value) {
            "zero"
        } else if !value::is_open(value) {
            "closed"
        } else {
            "dying"
        };
        let mode = if word.has(BUSY) || state == "dying" {
            "switching"
        } else if word.has(FORCE) {
            "atomic"
        } else {
            "per-CPU"
        };
        (state, mode)
    }

    /// Formats a handle called `name` for [`fmt::Debug`].
    pub(super) fn fmt_as<T>(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_described::<T>(name, self.describe(), self.references(), f)
    }

    /// Logs that the current task waits for the release.
    #[cold]
    pub(super) fn report_wait(&self, elapsed: Delta) {
        // No 64-bit number is formatted, because on 32-bit machines this takes a division that the
        // kernel does not have.
        let elapsed = elapsed.as_millis() as usize / 1000;
        let running = self.class.enter();
        let name = name_of(&running);
        let task = crate::current!();
        // SAFETY: The current task has a name, which ends with a null.
        let comm = unsafe { CStr::from_char_ptr((&raw const (*task.as_ptr()).comm).cast()) };
        let pid = task.pid();
        let (state, mode) = self.describe();

        let Some(killed) = self.killed_ago() else {
            pr_warn!(
                "{comm}[{pid}] has waited {elapsed} s for the release of {name}, which is {state} \
                 in {mode} mode: not killed\n"
            );
            holder::report_oldest(Some(self), self.class);
            return;
        };
        match self.references() {
            Some(references) => pr_warn!(
                "{comm}[{pid}] has waited {elapsed} s for the release of {name}, which is {state}: \
                 killed {killed} s ago, {references} references left\n"
            ),
            None => pr_warn!(
                "{comm}[{pid}] has waited {elapsed} s for the release of {name}, which is {state}: \
                 killed {killed} s ago, references not known\n"
            ),
        }
        holder::report_oldest(Some(self), self.class);
    }
}

/// Formats what [`Count::describe`] and [`Count::references`] returned.
pub(super) fn fmt_described<T>(
    name: &str,
    (state, mode): (&'static str, &'static str),
    references: Option<usize>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.debug_struct(name)
        .field("of", &core::any::type_name::<T>())
        .field("state", &state)
        .field("mode", &mode)
        .field("references", &references)
        .finish()
}

/// Returns the time in seconds, for messages.
pub(super) fn seconds() -> u32 {
    // SAFETY: `ktime_get_seconds()` can be called from any context except NMI.
    unsafe { bindings::ktime_get_seconds() as u32 }
}

/// Returns the name of the type of a class.
fn name_of(running: &Option<Running<'_>>) -> &'static str {
    running
        .as_ref()
        .map_or("(unloaded)", |running| (running.ops().name)())
}

/// Logs that an object is leaked, with the reason and a stack trace.
pub(super) fn report(class: &Class, why: fmt::Arguments<'_>) {
    let running = class.enter();
    pr_err!("{}: {why}; leaking memory\n", name_of(&running));
    warn_on!(true);
}
