//! What happens to whom.

/// Rounds of packets before and after what happens: every living flow sends one in each.
const QUIET: u32 = 3;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// So many rounds of ten seconds: each living flow sends a packet, some end and others begin.
    Rounds(u32),
    /// So many backends join.
    Add(u32),
    /// So many leave the set; they live on.
    Remove(u32),
    /// So many get weight 0.
    Drain(u32),
    /// So many leave and as many join, at once.
    Replace(u32),
    /// A third of them has half of its weight.
    Weigh,
    /// So many die: confirmed, and out of the set.
    Die(u32),
    /// An LB node joins; the routers spread anew, modulo the number of nodes.
    NodeJoins,
    /// An LB node dies with all that it knew; the routers spread anew.
    NodeLeaves,
    /// An LB node loses its memory, as by a reboot, and has its place back.
    NodeReboots,
    /// Receive queues are dealt anew on every node: flows come to other CPUs.
    Queues,
    /// From now on an operator publishes who the members were before the first change, as in a cluster.
    Publish,
    /// From now on so many SYNs from addresses of nobody come with each packet of a flow.
    Flood(u32),
}

/// A history.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// Backends, LB nodes or traffic change, not two of them at once: nothing may break whose backend lives.
    pub(super) is_single_cause: bool,
    /// What remembers flows has room for half of those that are open.
    pub(super) is_short_of_records: bool,
    pub(super) events: Vec<Event>,
}

impl Scenario {
    /// All of them, for so many backends.
    pub(super) fn all(backends: u32) -> Vec<Self> {
        use Event::*;
        // Longer than the learning window of UDP.
        let after = Rounds(20);
        let tenth = backends.div_ceil(10);
        let rolled: Vec<Event> = (0..backends)
            .flat_map(|_| [Drain(1), Rounds(2), Replace(1), Rounds(1)])
            .collect();
        let single = [
            ("nothing changes", vec![after]),
            ("a backend is added", vec![Add(1), after]),
            (
                "a tenth is added, one after the other",
                [[Add(1), Rounds(1)].repeat(tenth as usize), vec![after]].concat(),
            ),
            ("a backend is removed", vec![Remove(1), after]),
            ("a tenth is drained", vec![Drain(tenth), after]),
            ("a tenth is replaced", vec![Replace(tenth), after]),
            (
                "all are drained and replaced, one after the other",
                [rolled, vec![after]].concat(),
            ),
            (
                "added, and removed again",
                vec![Add(1), Rounds(2), Remove(1), Rounds(2), Add(1), after],
            ),
            ("weights change", vec![Weigh, Rounds(2), Weigh, after]),
            ("a backend dies", vec![Die(1), after]),
            (
                "a backend is drained and dies",
                vec![Drain(1), Rounds(2), Die(1), after],
            ),
            ("an LB node joins", vec![NodeJoins, after]),
            ("an LB node leaves", vec![NodeLeaves, after]),
            ("an LB node reboots", vec![NodeReboots, after]),
            (
                "a tenth is replaced, and an operator says so",
                vec![Publish, Replace(tenth), Rounds(2), Add(1), after],
            ),
            ("receive queues are dealt anew", vec![Queues, after]),
            (
                "receive queues, in a transit",
                vec![Replace(tenth), Rounds(2), Queues, after],
            ),
            (
                "a SYN flood, and a tenth is replaced",
                vec![Flood(8), Rounds(1), Replace(tenth), after],
            ),
        ];
        let both = [
            (
                "in a transit an LB node joins",
                vec![Replace(tenth), Rounds(3), NodeJoins, after],
            ),
            (
                "in a transit an LB node leaves",
                vec![Replace(tenth), Rounds(3), NodeLeaves, after],
            ),
            (
                "in a transit an LB node reboots",
                vec![Replace(tenth), Rounds(3), NodeReboots, after],
            ),
            (
                "in a transit an LB node joins, knows its base",
                vec![Publish, Replace(tenth), Rounds(3), NodeJoins, after],
            ),
            (
                "in a transit an LB node reboots, knows its base",
                vec![Publish, Replace(tenth), Rounds(3), NodeReboots, after],
            ),
            (
                "an LB node leaves, then a tenth is replaced",
                vec![NodeLeaves, Rounds(3), Replace(tenth), after],
            ),
        ];
        let scenario = |(name, events): (_, Vec<Event>), is_single_cause, is_short_of_records| Self {
            name,
            is_single_cause,
            is_short_of_records,
            events: [vec![Rounds(QUIET)], events].concat(),
        };
        let mut all: Vec<Self> = single.into_iter().map(|row| scenario(row, true, false)).collect();
        all.push(scenario(
            ("too few records, and a tenth is replaced", vec![Replace(tenth), after]),
            true,
            true,
        ));
        all.extend(both.into_iter().map(|row| scenario(row, false, false)));
        all
    }
}
