//! What can go wrong at the kernel's edge. Never a bare errno: every error names the system call and the object, and
//! says what to do where that is known.

use std::io;

use super::{PinError, advice::Advice, attach::Mode, hook::Holder, verifier_log::VerifierTail};

/// Why the datapath could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The object file was not understood: this build is broken.
    #[error("the eBPF object `{object}` of this build cannot be read: {source}")]
    Object {
        /// `lb` or `decap`.
        object: &'static str,
        /// What aya says.
        source: Box<aya::EbpfError>,
    },
    /// The object lacks a map or program that this crate counts on: this build is broken.
    #[error("the eBPF object `{object}` of this build has no {missing}")]
    Incomplete {
        /// `lb` or `decap`.
        object: &'static str,
        /// Name of the map or program.
        missing: &'static str,
    },
    /// A map of the object has another shape than the map ABI says.
    #[error("map {map}: {found} bytes per value where the map ABI has {expected}")]
    Shape {
        /// Name of the map.
        map: &'static str,
        /// Bytes per value as loaded.
        found: u32,
        /// Bytes per value as compiled in.
        expected: u32,
    },
    /// The program did not load.
    #[error("BPF_PROG_LOAD of {program}: {source}{advice}{log}")]
    Verifier {
        /// Name of the program.
        program: &'static str,
        /// The call's error.
        source: io::Error,
        /// What to do.
        advice: Advice,
        /// End of the verifier's log.
        log: VerifierTail,
    },
    /// A map was not created.
    #[error("BPF_MAP_CREATE of {map}: {source}{advice}")]
    MapCreate {
        /// Name of the map.
        map: String,
        /// The call's error.
        source: io::Error,
        /// What to do.
        advice: Advice,
    },
    /// A map was not read, written or mapped.
    #[error("{call} on map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// A position outside of a map: the caller's mistake.
    #[error("map {map}: word {word} of entry {index} in a map of {entries} entries of {words} words")]
    OutOfBounds {
        /// Name of the map.
        map: &'static str,
        /// Entry asked for.
        index: u32,
        /// Word asked for.
        word: u32,
        /// Entries there are.
        entries: u32,
        /// Words in an entry.
        words: u32,
    },
    /// A plan was interrupted. Every prefix of a plan is a safe state, but the planner's image and the maps no longer
    /// agree.
    #[error("write {done} of {of} of a plan failed, the rest was not tried: {source}")]
    Plan {
        /// Writes that were carried out; also the position of the one that failed.
        done: usize,
        /// Writes of the plan.
        of: usize,
        /// Why.
        source: Box<DatapathError>,
    },
    /// A plan asks for a segment out of turn.
    #[error("a plan asks for segment {asked} of slot memory, the next one is {next}")]
    SegmentOutOfTurn {
        /// Position in the plan.
        asked: u32,
        /// Position that comes next.
        next: u32,
    },
    /// All segments of slot memory that the configuration allows are made.
    #[error("slot memory is full: {segments} segments of 1 MiB, see `capacity.table_segments`")]
    SlotMemoryFull {
        /// Segments there are.
        segments: u32,
    },
    /// More interfaces than `PORTS` has room for.
    #[error("{asked} interfaces, and there is room for {room}")]
    TooManyPorts {
        /// Interfaces asked for.
        asked: usize,
        /// Room in `PORTS`.
        room: usize,
    },
    /// More slow-path sockets than there is room for.
    #[error("there is room for {room} slow-path sockets (one per interface and receive queue)")]
    TooManySockets {
        /// Room in `XSKS`.
        room: usize,
    },
    /// There is no interface of this name.
    #[error("interface {interface}: {source}; `ip link` lists those of this network namespace")]
    NoInterface {
        /// Interface name as given.
        interface: String,
        /// if_nametoindex(3)'s error.
        source: io::Error,
    },
    /// An interface runs one XDP program, and it is not ours.
    #[error(
        "interface {interface} already runs {holder}; an interface takes one XDP program: detach that one first \
         (`bpftool net` shows what holds it, `ip link set dev {interface} xdp off` removes one that no link holds)"
    )]
    Occupied {
        /// Interface name.
        interface: String,
        /// Who is there.
        holder: Holder,
    },
    /// The program was not attached.
    #[error("BPF_LINK_CREATE on interface {interface} in {mode} mode: {source}{advice}")]
    Attach {
        /// Interface name.
        interface: String,
        /// Mode asked for.
        mode: Mode,
        /// The call's error.
        source: io::Error,
        /// What to do.
        advice: Advice,
    },
    /// A link was not updated or detached.
    #[error("{call} on interface {interface}: {source}")]
    Link {
        /// Interface name.
        interface: String,
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The kernel did not say what runs on an interface.
    #[error("{call} (RTM_GETLINK) for interface {interface}: {source}")]
    Query {
        /// Interface name.
        interface: String,
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// No grace period could be awaited.
    #[error("waiting for a grace period (membarrier, or BPF_MAP_UPDATE_ELEM of a map of maps): {source}{advice}")]
    Grace {
        /// The call's error.
        source: io::Error,
        /// What to do.
        advice: Advice,
    },
    /// PROG_TEST_RUN failed.
    #[error("BPF_PROG_TEST_RUN of {program} with {length} bytes: {source}")]
    TestRun {
        /// Name of the program.
        program: &'static str,
        /// Length of the frame.
        length: usize,
        /// The call's error.
        source: io::Error,
    },
    /// The kernel did not describe a program of ours.
    #[error("BPF_OBJ_GET_INFO_BY_FD of {program}: {source}")]
    Facts {
        /// Name of the program.
        program: &'static str,
        /// The call's error.
        source: io::Error,
    },
    /// The length of a jiffy is not to be had.
    #[error("clock_getres(CLOCK_MONOTONIC_COARSE): {source}")]
    Clock {
        /// The call's error.
        source: io::Error,
    },
    /// What outlives the process.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The possible CPUs are not to be had.
    #[error("cannot read {path}: {source}")]
    Cpus {
        /// File that says it.
        path: &'static str,
        /// Its error.
        source: io::Error,
    },
}
