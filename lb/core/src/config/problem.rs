//! What can be wrong with a configuration file: where, what, and what to do about it.
//!
//! Never quotes the seed, and no more of anything else than [`Quoted`] does.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;
use xdp_prog::abi::{MAX_PORTS, MAX_QUEUES, MAX_SET_RANGES, MAX_TABLE_SLOTS, MIN_TABLE_SLOTS};

use super::{
    MAX_CONFIG_BYTES, MAX_GROUP_MEMBERS, MAX_INTERFACE_NAME_BYTES, MAX_NAME_BYTES, MAX_PROBE_BODY_BYTES,
    MAX_PROBE_HOST_BYTES, MAX_PROBE_PATH_BYTES, MAX_SOCKET_PATH_BYTES,
    bgp::BgpProblem,
    encap::PrefixLengths,
    seed::SeedError,
    words::{Kind, LaterMode, NotUnicast, Quoted, Words},
};
use crate::desired::VipKey;

/// What is wrong, with the data, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    // The text.
    /// Longer than [`MAX_CONFIG_BYTES`].
    #[error(
        "the file has {bytes} bytes, at most {MAX_CONFIG_BYTES} are read; share backend sets by name under `backend_sets`"
    )]
    TooLarge {
        /// Length of the file.
        bytes: usize,
    },
    /// Not UTF-8.
    #[error("not UTF-8 text from byte {valid_bytes} on; save the file as UTF-8")]
    NotUtf8 {
        /// Bytes before the first bad one.
        valid_bytes: usize,
    },
    /// Not YAML. The words are those of the YAML reader, about structure and never about values.
    #[error("not valid YAML: {yaml}")]
    Syntax {
        /// What the YAML reader says.
        yaml: String,
    },
    /// Aliases repeat so much that the document would not stay a few times the file's size.
    #[error("YAML aliases repeat too much; name what is shared under `backend_sets` instead")]
    TooManyAliases,
    /// Nothing in it.
    #[error("the file is empty; see deploy/examples")]
    EmptyFile,

    // Keys and types.
    /// A key nobody knows.
    #[error("unknown key; {}", meant(*.nearest, .known))]
    UnknownKey {
        /// Keys known at this place.
        known: Vec<&'static str>,
        /// The one that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The same key twice in one map.
    #[error("the same key stands here twice; keep one")]
    DuplicateKey,
    /// A key that must be there.
    #[error("missing; it is required here")]
    Missing,
    /// Nothing after the colon.
    #[error("empty; give {expected}, or remove the key")]
    Empty {
        /// What is wanted.
        expected: Kind,
    },
    /// A value of the wrong type.
    #[error("is {found}, not {expected}{}", quotes_hint(*.found, *.expected))]
    WrongKind {
        /// What stands there.
        found: Kind,
        /// What is wanted.
        expected: Kind,
    },
    /// Neither a name nor a map.
    #[error("is {found}, neither a name nor {what}")]
    NeitherNameNor {
        /// What stands there.
        found: Kind,
        /// What may stand there instead of a name.
        what: &'static str,
    },
    /// A number out of its bounds.
    #[error("{value} is not in {least}..={most}")]
    NotInRange {
        /// The number.
        value: i128,
        /// Smallest allowed.
        least: u64,
        /// Largest allowed.
        most: u64,
    },
    /// A number that is not one of the powers of two within bounds.
    #[error("{value} is not a power of two in {least}..={most}")]
    NotAPowerOfTwo {
        /// The number.
        value: i128,
        /// Smallest allowed.
        least: u32,
        /// Largest allowed.
        most: u32,
    },
    /// A word that is none of the allowed ones.
    #[error("{value} is not one of {}", Words(.allowed))]
    NotOneOf {
        /// The word.
        value: Quoted,
        /// The allowed words.
        allowed: &'static [&'static str],
    },
    /// An empty list where something is needed.
    #[error("an empty list; {hint}")]
    EmptyList {
        /// What to do.
        hint: &'static str,
    },

    /// A key whose word comes from the cluster.
    #[error("has no place here with --kube: it comes from {from}; remove it")]
    FromCluster {
        /// From which objects.
        from: &'static str,
    },

    // Groups.
    /// A group of one is none.
    #[error("{members} members; a group has 2 to {MAX_GROUP_MEMBERS}, this node included")]
    GroupSize {
        /// How many there are.
        members: usize,
    },
    /// Two members would be one.
    #[error("two members have the same address; each is heard at its own")]
    GroupSharesAddress,
    /// This node is nobody.
    #[error("{name} is none of `members`; this node is one of them, and all nodes have the same list")]
    NotInGroup {
        /// The name.
        name: Quoted,
    },

    // Addresses and networks.
    /// Not an address.
    #[error("{value} is not an IP address{}", .hint.map_or("", |hint| hint))]
    NotAnAddress {
        /// What stands there.
        value: Quoted,
        /// What is probably too much in it.
        hint: Option<&'static str>,
    },
    /// An address of the other family.
    #[error("{address} is not an {family} address")]
    WrongFamily {
        /// The address.
        address: IpAddr,
        /// The wanted family.
        family: &'static str,
    },
    /// An address that is not an ordinary unicast one.
    #[error("{address} is {why}; give an address that routers forward")]
    NotUnicast {
        /// The address.
        address: IpAddr,
        /// What it is.
        why: NotUnicast,
    },
    /// Not an address with a port.
    #[error("{value} is not ADDRESS:PORT, as 127.0.0.1:9430 or [::]:9430, with a port from 1 to 65535")]
    NotASocketAddress {
        /// What stands there.
        value: Quoted,
    },
    /// Not a network.
    #[error("{value} is not a network in CIDR notation, as 192.0.2.0/24 or 2001:db8::/32")]
    NotANetwork {
        /// What stands there.
        value: Quoted,
    },
    /// Bits set below the prefix length.
    #[error("{network} has bits set below its length; did you mean {}?", .network.trunc())]
    HostBits {
        /// As written.
        network: IpNet,
    },
    /// Everything, where only some may be meant.
    #[error("{network} is every address of its family; list the networks you mean{instead}")]
    EveryAddress {
        /// As written.
        network: IpNet,
        /// A key that says so openly.
        instead: &'static str,
    },
    /// An IPv6 network inside `::ffff:0:0/96`.
    #[error("{network} is IPv4-mapped; write the IPv4 network")]
    MappedNetwork {
        /// As written.
        network: IpNet,
    },
    /// More ranges than the program's search can take.
    #[error("{ranges} separate ranges after merging, at most {MAX_SET_RANGES} fit one list; use wider networks")]
    TooManyRanges {
        /// Ranges after merging.
        ranges: usize,
    },
    /// More ranges than the map has.
    #[error(
        "all lists together take {ranges} ranges and `capacity.ranges` is {capacity}; raise it or use wider networks"
    )]
    RangesOverCapacity {
        /// Ranges after merging, equal lists counted once, each padded to a power of two.
        ranges: usize,
        /// The capacity.
        capacity: u32,
    },

    // Names and paths.
    /// Not a name.
    #[error(
        "{value} is not a name: letters, digits and `.` `_` `-` `:` `/`, a letter or digit first, at most {MAX_NAME_BYTES} bytes"
    )]
    BadName {
        /// As written.
        value: Quoted,
    },
    /// Not an interface name (`dev_valid_name` in net/core/dev.c).
    #[error(
        "{value} cannot be an interface: 1 to {MAX_INTERFACE_NAME_BYTES} bytes without space, `/` or `:`, not `.` or `..`"
    )]
    BadInterfaceName {
        /// As written.
        value: Quoted,
    },
    /// The same interface twice.
    #[error("interface {name} is already {first}; list it once")]
    DuplicateInterface {
        /// The interface.
        name: String,
        /// Path of the first.
        first: String,
    },
    /// More interfaces than `PORTS` has places.
    #[error("{count} interfaces, at most {MAX_PORTS}")]
    TooManyInterfaces {
        /// As configured.
        count: usize,
    },
    /// Not an absolute path.
    #[error("{value} is not an absolute path")]
    NotAbsolute {
        /// As written.
        value: Quoted,
    },
    /// A path that does not fit `sun_path` (unix(7)).
    #[error("{bytes} bytes of path, at most {MAX_SOCKET_PATH_BYTES} fit a Unix socket's address")]
    SocketPathTooLong {
        /// Length of the path.
        bytes: usize,
    },

    // The seed.
    /// Not a seed. Never quotes it.
    #[error("{0}")]
    Seed(#[from] SeedError),
    /// Neither or both of `seed` and `seed_file`.
    #[error("{}", seed_choice(*.both))]
    SeedChoice {
        /// Both are there, else neither.
        both: bool,
    },

    // Encapsulation.
    /// A prefix whose length leaves too few or too many bits for the flow hash.
    #[error("a length of {length} is not in {}..={}", .allowed.least, .allowed.most)]
    PrefixLength {
        /// As written.
        length: u8,
        /// Allowed lengths of the family.
        allowed: PrefixLengths,
    },
    /// `source: prefix` without any prefix.
    #[error("`source: prefix` needs `prefix_v4` or `prefix_v6`: a network routed to this LB node")]
    NoPrefix,
    /// A key of the other kind of source.
    #[error("has no meaning with `source: {source_is}`; remove it or change `source`")]
    OtherEncapSource {
        /// The configured kind.
        source_is: &'static str,
    },
    /// Backends of a family without a prefix.
    #[error("missing: backend {backend} is {family} and `source` is prefix; give the prefix or remove the backend")]
    NoPrefixForBackend {
        /// One such backend.
        backend: String,
        /// Its family.
        family: &'static str,
    },
    /// A VIP or backend inside the outer source prefix.
    #[error("{address} lies in the outer source prefix {prefix}, which is for nothing else")]
    InSourcePrefix {
        /// The address.
        address: IpAddr,
        /// The prefix.
        prefix: IpNet,
    },

    // VIPs.
    /// The same VIP twice.
    #[error("{vip} is already {first}; keep one")]
    DuplicateVip {
        /// The VIP.
        vip: VipKey,
        /// Path of the first.
        first: String,
    },
    /// A mode of the design that does not work yet.
    #[error("{} is not supported by this build yet; use DsrIpip", .mode.name())]
    LaterMode {
        /// The mode.
        mode: LaterMode,
    },
    /// A protocol of the design that does not work yet.
    #[error("sctp is not supported by this build yet; use tcp or udp")]
    LaterProtocol,
    /// A set nobody defined.
    #[error("no backend set {name}; {}", sets_there_are(.known))]
    UnknownSet {
        /// The name.
        name: Quoted,
        /// Some of the defined ones.
        known: Vec<String>,
    },
    /// `table_slots` beside a set's name.
    #[error("belongs to the backend set when `backends` is a set's name; move it there")]
    SlotsOfNamedSet,
    /// Not a table size.
    #[error("{slots} is not a power of two in {MIN_TABLE_SLOTS}..={MAX_TABLE_SLOTS}")]
    BadTableSlots {
        /// As written.
        slots: i128,
    },
    /// Fewer slots than members with a weight.
    #[error(
        "{slots} slots for {members} members with a weight above 0: each needs one at least, 64 or more to share evenly"
    )]
    TooFewSlots {
        /// Slots, as configured or the most there can be.
        slots: usize,
        /// Members with a weight above 0.
        members: usize,
    },
    /// The same backend twice in one set.
    #[error("{backend} is already {first}; a backend stands once in a set, with the weight it should have")]
    DuplicateMember {
        /// The backend's name.
        backend: String,
        /// Path of the first.
        first: String,
    },
    /// One name, two addresses.
    #[error("{backend} is {other} at {first}; one name has one address")]
    TwoAddresses {
        /// The backend's name.
        backend: String,
        /// Its address elsewhere.
        other: IpAddr,
        /// Path of that.
        first: String,
    },
    /// One address, two names.
    #[error("{address} is backend {other} at {first}; one address has one name")]
    TwoNames {
        /// The address.
        address: IpAddr,
        /// Its name elsewhere.
        other: String,
        /// Path of that.
        first: String,
    },
    /// A backend that is a VIP address: what is sent there would come back.
    #[error("{address} is also the VIP address of {vip}; a backend needs an address of its own")]
    BackendIsVip {
        /// The address.
        address: IpAddr,
        /// Path of the VIP.
        vip: String,
    },
    /// An outer source that is a VIP address.
    #[error("{address} is also the VIP address of {vip}; use an address of this node's own")]
    SourceIsVip {
        /// The address.
        address: IpAddr,
        /// Path of the VIP.
        vip: String,
    },
    /// A burst without a rate.
    #[error("has no meaning without `{rate}`; give both or neither")]
    BurstWithoutRate {
        /// The rate's key.
        rate: &'static str,
    },
    /// A SYN limit on a VIP that sees no SYNs.
    #[error("a udp VIP has no SYNs; use `packets_per_second_per_cpu`")]
    SynsOfUdp,
    /// More of something than the maps are made for.
    #[error("{count} {what}, and `{key}` is {capacity}; raise it (at most {most})")]
    OverCapacity {
        /// How many there are.
        count: usize,
        /// Of what.
        what: &'static str,
        /// The key to raise.
        key: &'static str,
        /// Its value.
        capacity: u32,
        /// Its bound.
        most: u32,
    },

    /// A clamp on a VIP that sees no SYNs.
    #[error("a udp VIP has no SYNs to clamp; remove it")]
    ClampOfUdp,

    /// A word about datagrams on a VIP that sees none.
    #[error("a tcp VIP has no datagrams; its connections are always kept; remove it")]
    DatagramsOfTcp,
    /// Each datagram by itself, for who counts or remembers flows.
    #[error(
        "flows of datagrams must be kept for a scheduler that counts them, or a client affinity that lasts; remove it"
    )]
    DatagramsUnknown,
    /// Two ways to choose.
    #[error(
        "it chooses by a hash of the client's address, and `scheduler: {scheduler}` does not: remove one of them, or say how long \
         clients are remembered (`client_ip: {{ timeout_s: 10800 }}`)"
    )]
    AffinityOfScheduler {
        /// The scheduler.
        scheduler: &'static str,
    },
    /// Flow records are wanted, and there are none.
    #[error(
        "a scheduler or a client affinity that lasts keeps flow records, and `transit.enabled: false` switches those off"
    )]
    RecordsOff,
    // Health.
    /// A key of another type of probe.
    #[error("has no meaning with `type: {type_is}`; remove it or give another `type`")]
    OtherHealthType {
        /// The type that holds here.
        type_is: &'static str,
    },
    /// A probe of nothing.
    #[error("missing; with `type: {type_is}` give the port to connect to at the backends' addresses")]
    ProbeWithoutPort {
        /// The type.
        type_is: &'static str,
    },
    /// A probe that is not over when the next begins.
    #[error("a timeout of {timeout_ms} ms does not end before the next probe, {interval_ms} ms later; lower it")]
    TimeoutOverInterval {
        /// The timeout that holds here.
        timeout_ms: u32,
        /// The interval that holds here.
        interval_ms: u32,
    },
    /// Not the path of a request.
    #[error(
        "{value} is not a path: `/` first, then what a URL has, percent-encoded where need be, at most {MAX_PROBE_PATH_BYTES} bytes"
    )]
    NotAProbePath {
        /// As written.
        value: Quoted,
    },
    /// Not what a `Host` field may be.
    #[error("{value} is not a host: a name or an address, at most {MAX_PROBE_HOST_BYTES} bytes")]
    NotAProbeHost {
        /// As written.
        value: Quoted,
    },
    /// Not HTTP statuses.
    #[error("{value} is neither a status nor a range of them: 200, or 200-399")]
    NotStatuses {
        /// As written.
        value: Quoted,
    },
    /// A text that no body, or any, would have.
    #[error("{bytes} bytes of text are not in 1..={MAX_PROBE_BODY_BYTES}")]
    BadProbeBody {
        /// Its length.
        bytes: usize,
    },
    /// `health` beside a set's name.
    #[error("belongs to the backend set when `backends` is a set's name; move it there")]
    HealthOfNamedSet,

    // The slow path.
    /// The same CPU twice.
    #[error("CPU {cpu} is already {first}; list it once")]
    DuplicateCpu {
        /// The CPU.
        cpu: u32,
        /// Path of the first.
        first: String,
    },
    /// More CPUs than there can be workers.
    #[error("{count} CPUs, at most {MAX_QUEUES}: there are no more workers")]
    TooManyCpus {
        /// As configured.
        count: usize,
    },

    /// Something under `bgp`.
    #[error(transparent)]
    Bgp(#[from] BgpProblem),

    // The worker agent.
    /// Nothing to tell tunnelled packets by.
    #[error("missing or empty; list {what}, or turn `{switch}` off knowingly")]
    MissingUnlessOff {
        /// What to list.
        what: &'static str,
        /// The switch.
        switch: &'static str,
    },
    /// `blackhole_unclaimed` without knowing what for.
    #[error("needs `vip_prefixes`: those are what is blackholed; list them or turn it off knowingly")]
    BlackholeWithoutPrefixes,
}

fn meant(nearest: Option<&str>, known: &[&'static str]) -> String {
    nearest.map_or_else(
        || format!("known here: {}", Words(known)),
        |near| format!("did you mean `{near}`?"),
    )
}

/// Text that looks like something else to YAML.
fn quotes_hint(found: Kind, expected: Kind) -> &'static str {
    let text_elsewhere = matches!(found, Kind::Bool | Kind::Integer | Kind::Float);
    if expected == Kind::Text && text_elsewhere {
        "; put it in quotes"
    } else {
        ""
    }
}

fn seed_choice(both: bool) -> &'static str {
    if both {
        "`seed` and `seed_file` are both given; keep one"
    } else {
        "missing; give `seed_file: /etc/vipline/seed`, or `seed` with 64 hex digits (`openssl rand -hex 32`), the same on \
         all LB nodes of a group"
    }
}

fn sets_there_are(known: &[String]) -> String {
    if known.is_empty() {
        "define it under `backend_sets`".to_owned()
    } else {
        format!("`backend_sets` has {}", known.join(", "))
    }
}
