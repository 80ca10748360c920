// SPDX-License-Identifier: GPL-2.0

//! The details of the list: each object, with its holders.

use crate::{
    fmt,
    prelude::*,
    sync::{
        atomic::Relaxed,
        percpu_ref::{
            count::Count,
            holder::{
                self,
                Entry,
                Kind, //
            },
            unload::Class,
            value, //
        }, //
    }, //
};
use core::{
    cmp::Reverse,
    ptr, //
};

/// The contents of all records when they were read.
pub(super) struct Details {
    /// The objects, sorted by class, with the oldest first.
    objects: KVVec<Object>,
    /// The holders, sorted by object, with the oldest first.
    ///
    /// Holders of one kind and site share an entry, which has the age of the oldest.
    holders: KVVec<Entry>,
}

struct Object {
    made: Entry,
    state: &'static str,
    /// The mode, while the object is live.
    mode: Option<&'static str>,
    references: Option<usize>,
    /// The seconds since the object was killed.
    killed: Option<u32>,
}

impl Object {
    fn read(count: &Count, made: Entry) -> Self {
        let (state, mode) = count.describe();
        Self {
            made,
            state,
            mode: (!count.is_dying()).then_some(mode),
            references: references(count),
            killed: count.killed_ago(),
        }
    }
}

/// Returns the number of references, or `None` if the mode is changing.
///
/// The number is not a snapshot, because CPUs can get and put references while the counters are
/// added up. The caller must be in an RCU read-side critical section.
fn references(count: &Count) -> Option<usize> {
    let word = count.word.load(Relaxed);
    if !word.is_percpu() {
        return count.references();
    }
    // A 32-bit machine would read the counters of other CPUs in two steps.
    #[cfg(not(CONFIG_64BIT))]
    return None;
    #[cfg(CONFIG_64BIT)]
    {
        // SAFETY: No flag is set, and the caller is in a read-side critical section, in which the
        // count was found. So the counters are not freed before the section ends.
        let sum = unsafe { Count::counters(word) }.sum();
        let references = value::references(count.atomic.load(Relaxed).wrapping_add(sum))?;
        (references <= value::LIMIT).then_some(references as usize)
    }
}

impl Details {
    /// Reads all records.
    ///
    /// # Context
    ///
    /// May sleep, so must be called from process context.
    pub(super) fn read() -> Result<Self> {
        let (mut objects_len, mut holders_len) = (0, 0);
        holder::each(|_, entry| match entry.kind {
            Kind::Object => objects_len += 1,
            _ => holders_len += 1,
        });
        // There may be more records when they are read below. Those that do not fit are left out.
        let mut objects = KVVec::with_capacity(objects_len + objects_len / 8 + 64, GFP_KERNEL)?;
        let mut holders = KVVec::with_capacity(holders_len + holders_len / 8 + 64, GFP_KERNEL)?;
        holder::each(|count, entry| {
            let _ = match entry.kind {
                Kind::Object => objects
                    .push_within_capacity(Object::read(count, entry))
                    .is_ok(),
                _ => holders.push_within_capacity(entry).is_ok(),
            };
        });

        objects.sort_unstable_by_key(|object: &Object| {
            (
                ptr::from_ref(object.made.class).addr(),
                Reverse(object.made.age),
            )
        });
        sum_up(&mut holders);
        Ok(Self { objects, holders })
    }

    /// Writes the objects of a class, each with its holders.
    pub(super) fn write(&self, class: &Class, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = ptr::from_ref(class).addr();
        let class_of = |object: &Object| ptr::from_ref(object.made.class).addr();
        let first = self
            .objects
            .partition_point(|object| class_of(object) < class);
        let objects = self.objects.iter().skip(first);
        for object in objects.take_while(|object| class_of(object) == class) {
            let Object {
                made, state, mode, ..
            } = object;
            f.write_fmt(fmt!("    made {}: {state}, ", made.got()))?;
            if let Some(mode) = mode {
                f.write_fmt(fmt!("{mode} mode, "))?;
            }
            if let Some(killed) = object.killed {
                f.write_fmt(fmt!("killed {killed} s ago, "))?;
            }
            match object.references {
                Some(1) => f.write_fmt(fmt!("1 reference\n"))?,
                Some(n) => f.write_fmt(fmt!("{n} references\n"))?,
                None => f.write_fmt(fmt!("references not known\n"))?,
            }
            self.write_holders(made.count.addr(), f)?;
        }
        Ok(())
    }

    /// Writes the number of references that are missing in the list.
    pub(super) fn write_end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match holder::unrecorded() {
            0 => Ok(()),
            n => f.write_fmt(fmt!("{n} references were not recorded\n")),
        }
    }

    fn write_holders(&self, count: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self
            .holders
            .partition_point(|entry| entry.count.addr() < count);
        let holders = self.holders.iter().skip(first);
        for entry in holders.take_while(|entry| entry.count.addr() == count) {
            match (entry.kind, entry.len) {
                (Kind::Freezer, 1) => f.write_fmt(fmt!("      frozen {}\n", entry.got()))?,
                (Kind::Freezer, n) => {
                    f.write_fmt(fmt!("      frozen {n} times, first {}\n", entry.got()))?
                }
                (_, 1) => f.write_fmt(fmt!("      1 reference, got {}\n", entry.got()))?,
                (_, n) => f.write_fmt(fmt!(
                    "      {n} references, the oldest got {}\n",
                    entry.got()
                ))?,
            }
        }
        Ok(())
    }
}

/// Merges the entries that have the same object, kind and site.
fn sum_up(holders: &mut KVVec<Entry>) {
    let group = |entry: &Entry| (entry.count.addr(), entry.kind, entry.site);
    holders.sort_unstable_by_key(|entry| (group(entry), Reverse(entry.age)));

    let mut len = 0usize;
    for i in 0..holders.len() {
        let entry = holders[i];
        match len.checked_sub(1) {
            Some(last) if group(&holders[last]) == group(&entry) => {
                holders[last].len = holders[last].len.saturating_add(entry.len);
            }
            _ => {
                holders[len] = entry;
                len += 1;
            }
        }
    }
    holders.truncate(len);
    holders.sort_unstable_by_key(|entry| (entry.count.addr(), Reverse(entry.age)));
}
