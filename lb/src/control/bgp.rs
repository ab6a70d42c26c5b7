//! What the daemon tells of BGP.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// `vipline bgp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpView {
    /// This node's ASN.
    pub local_asn: u32,
    /// Its name in BGP.
    pub router_id: Ipv4Addr,
    /// Why peers cannot connect, where they should.
    pub deaf: Option<String>,
    /// VIP addresses that are announced.
    pub addresses: usize,
    /// All peers, by address.
    pub peers: Vec<BgpPeerView>,
}

/// A peer and its session. Counts are since the session was made: at a start, or when its configuration changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpPeerView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// Its ASN, as configured.
    pub asn: u32,
    /// `Idle`, `Connect`, `Active`, `OpenSent`, `OpenConfirm` or `Established`.
    pub state: String,
    /// Whether that is `Established`.
    pub up: bool,
    /// Seconds since it came up, went down or was told to rest.
    pub seconds: u64,
    /// The peer's own name in BGP; absent unless the session is up.
    pub router_id: Option<Ipv4Addr>,
    /// The hold time that both agreed on, in seconds; 0: none.
    pub hold_time_s: Option<u64>,
    /// Whether the peer keeps routes across a restart.
    pub graceful_restart: Option<bool>,
    /// Prefixes that it knows from here.
    pub announced: usize,
    /// Prefixes that it cannot be told: the family was not agreed on, or there is no next hop.
    pub withheld: usize,
    /// Prefixes that it announced, and that were ignored.
    pub ignored: u64,
    /// UPDATEs of it that were malformed.
    pub malformed: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// How often the session went down without being told to.
    pub flaps: u64,
    /// BFD with it; absent where it is not watched.
    #[serde(default)]
    pub bfd: Option<BfdPeerView>,
    /// What went wrong last; it stays when the session is up again.
    pub last_error: Option<BgpErrorView>,
}

/// BFD with a peer. Counts are since the session was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BfdPeerView {
    /// `admin_down`, `down`, `init` or `up`.
    pub state: String,
    /// The peer's, as last heard.
    pub remote_state: String,
    /// Whether both hear one another.
    pub up: bool,
    /// Seconds since they do, or do not.
    pub seconds: u64,
    /// Milliseconds between two packets that are sent.
    pub interval_ms: u64,
    /// After how many milliseconds of silence the peer is lost; absent while it is not heard.
    pub detection_ms: Option<u64>,
    /// How often it was lost.
    pub downs: u64,
    /// Why it was lost last.
    pub cause: Option<String>,
    /// Whether BGP waits for it to come back.
    pub holds_bgp: bool,
    /// Why nothing is sent or received.
    pub fault: Option<String>,
}

/// What went wrong with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpErrorView {
    /// Seconds ago.
    pub seconds_ago: u64,
    /// Its kind, as in the metrics.
    pub kind: String,
    /// What happened.
    pub error: String,
    /// What to do.
    pub advice: String,
}
