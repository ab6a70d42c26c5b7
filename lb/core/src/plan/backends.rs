//! Backend lines: how they change while packets read them.

use xdp_prog::abi::{BackendIndex, BackendLine, LineMeta};

use super::{
    Planning,
    books::BackendState,
    draft::Draft,
    error::PlanError,
    transit::backends_named,
    write::{MapId, Write},
};
use crate::{
    desired::{BackendId, Desired, NextHop, NextHops},
    nexthop_line,
};

/// Word of a line that says whether and how it is used.
const META: u32 = 0;

impl Planning<'_> {
    /// Gives new backends a line and brings the others' lines to what is known now. Backends that go away keep theirs until
    /// nothing names them any more.
    pub(super) fn plan_backends(&mut self, desired: &Desired, hops: &NextHops) -> Result<(), PlanError> {
        let mut changes = Vec::new();
        for (id, backend) in &desired.backends {
            match self.books.backends.get_mut(id) {
                Some(state) => {
                    state.address = backend.address;
                    state.has_departed = false;
                }
                None => {
                    let capacity = self.capacity.backends;
                    let rest = if self.keeps_flows {
                        self.moment.timeouts.longest()
                    } else {
                        0
                    };
                    let index = self.books.backend_indexes.take(self.moment.now, rest);
                    let index = index.ok_or_else(|| PlanError::TooManyBackends {
                        backend: id.clone(),
                        capacity,
                    })?;
                    let index = BackendIndex(index as u16);
                    self.draft.zero(Write::ZeroBackendCounter(index));
                    self.books.backends.insert(
                        id.clone(),
                        BackendState {
                            index,
                            address: backend.address,
                            has_departed: false,
                        },
                    );
                    self.books.backend_ids.insert(index, id.clone());
                    self.summary.backends_added += 1;
                }
            }
        }
        self.admit_departed();
        for (id, state) in &mut self.books.backends {
            let is_dead = self.laid.is_dead(id);
            if !desired.backends.contains_key(id) && !state.has_departed {
                state.has_departed = true;
                self.leaving.backends.push(id.clone());
            }
            let current = self.draft.image().line(u32::from(state.index.0));
            // Where flows are not kept, who departs is cleared at the end of this plan.
            let hop = hops.get(id).filter(|_| self.keeps_flows || !state.has_departed);
            let line = line(&current, state, hop, self.keeps_flows && !is_dead);
            changes.push((state.index, line));
        }
        self.summary.lines_changed += write_lines(&mut self.draft, &changes);
        Ok(())
    }

    /// Departed backends that no table names, and no record can.
    pub(super) fn forgettable_backends(&self) -> Vec<BackendId> {
        let departed = |state: &BackendState| state.has_departed;
        if !self.books.backends.values().any(departed) {
            return Vec::new();
        }
        let named = backends_named(&self.books.lookup, self.draft.image());
        let forgettable = self.books.backends.iter().filter(|(_, state)| {
            state.has_departed && !named.contains(&state.index) && !(self.moment.named)(state.index)
        });
        forgettable.map(|(id, _)| id.clone()).collect()
    }

    /// Clears the lines of backends that nothing names any more. The caller has waited for a grace period.
    pub(super) fn forget_backends(&mut self, backends: Vec<BackendId>) {
        for id in backends {
            let Some(state) = self.books.backends.remove(&id) else {
                continue;
            };
            self.books.backend_ids.remove(&state.index);
            for word in 0..(size_of::<BackendLine>() / 8) as u32 {
                self.draft.store(MapId::Backends, u32::from(state.index.0), word, 0);
            }
            self.books
                .backend_indexes
                .release(u32::from(state.index.0), self.moment.now);
            self.summary.backends_removed += 1;
        }
    }
}

/// The line of a backend that stood at `current` so far; `is_alive`: flows may live there. Nobody need follow the way to a backend
/// that has departed.
pub(super) fn line(current: &BackendLine, state: &BackendState, hop: Option<&NextHop>, is_alive: bool) -> BackendLine {
    let mut line = match hop {
        None if state.has_departed => *current,
        hop => nexthop_line::line(current, state.address, hop.unwrap_or(&NextHop::Unresolved)),
    };
    line.meta &= !LineMeta::ALIVE;
    if is_alive {
        line.meta |= LineMeta::ALIVE;
    }
    line
}

/// Brings lines to what they should say; how many changed.
///
/// A word of the first three may change alone. What must change together changes while the line says *unresolved* and after
/// whoever had read it before is gone; one grace period serves all lines.
pub(super) fn write_lines(draft: &mut Draft<'_>, lines: &[(BackendIndex, BackendLine)]) -> usize {
    let changed: Vec<_> = lines
        .iter()
        .map(|(index, line)| (*index, draft.image().line(u32::from(index.0)), *line))
        .filter(|(_, before, line)| before != line)
        .collect();
    for (index, before, line) in &changed {
        let resolved = LineMeta(before.meta).has(LineMeta::RESOLVED);
        if resolved && !changes_in_place(before, line) {
            // Nobody can be sent there for a moment; whoever lives there lives on.
            let alive = before.meta & line.meta & LineMeta::ALIVE;
            draft.store(MapId::Backends, u32::from(index.0), META, alive);
            draft.retire_line(*index);
        }
    }
    let with = |line: &BackendLine| [&[line.destination_mac, line.source_mac][..], &line.outer].concat();
    let waits = |(index, before, line): &(BackendIndex, BackendLine, BackendLine)| {
        draft.line_in_use(*index) && with(before) != with(line)
    };
    if changed.iter().any(waits) {
        draft.grace();
    }
    for (index, before, line) in &changed {
        for (word, value) in (META + 1..).zip(with(line)) {
            draft.store(MapId::Backends, u32::from(index.0), word, value);
        }
        draft.store(MapId::Backends, u32::from(index.0), META, line.meta);
        if LineMeta(before.meta).has(LineMeta::RESOLVED) && !LineMeta(line.meta).has(LineMeta::RESOLVED) {
            draft.retire_line(*index);
        }
    }
    changed.len()
}

/// Whether a resolved line may become the other by stores that packets see one after another: whatever mix a packet reads, it
/// goes out of an interface with tags and an outer header that belong together.
fn changes_in_place(before: &BackendLine, after: &BackendLine) -> bool {
    // A line that becomes unresolved comes to name another address only where its backend has one.
    if !LineMeta(after.meta).has(LineMeta::RESOLVED) {
        return before.outer == after.outer;
    }
    let words = |line: &BackendLine| [line.meta, line.destination_mac, line.source_mac];
    let alone = words(before)
        .iter()
        .zip(words(after))
        .filter(|(before, after)| *before != after)
        .count()
        <= 1;
    // Where only the MTU and MAC addresses change, any mix of old and new is as good as either.
    let tag = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    let way = |line: &BackendLine| {
        [
            line.meta & !(0xffff << 16),
            line.destination_mac & tag,
            line.source_mac & tag,
        ]
    };
    before.outer == after.outer && (alone || way(before) == way(after))
}
