//! What can come of a probe. Never holds text of a backend's: only its status.

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered as it should be.
    Success,
    /// It was not.
    Failure(Failure),
    /// It was not made: nothing follows for the backend.
    Skipped(Fault),
}

impl Outcome {
    /// Whether the check was answered, for better or worse: that it can be, is known by this.
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Success | Self::Failure(Failure::Status(_) | Failure::Body))
    }

    /// As a counter label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure(failure) => failure.name(),
            Self::Skipped(fault) => fault.name(),
        }
    }

    /// Every label.
    pub const NAMES: [&'static str; 18] = [
        "success",
        "no_connection",
        "unreachable",
        "neighbour_failed",
        "no_syn_ack",
        "refused",
        "closed",
        "no_answer",
        "status",
        "body",
        "not_http",
        "tls",
        "no_socket",
        "no_source",
        "not_permitted",
        "no_way",
        "nobody_answers",
        "no_vip",
    ];
}

/// Why a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Failure {
    /// No answer to the SYN in time.
    #[error("no connection in time")]
    NoConnection,
    /// A router, or this host, says that there is no way (ICMP, EHOSTUNREACH, ENETUNREACH).
    #[error("unreachable")]
    Unreachable,
    /// ARP or neighbour discovery got no answer.
    #[error("the neighbour does not answer")]
    NeighbourFailed,
    /// No answer from the VIP to a SYN through the tunnel. The node behind it may be well: this one says nothing of life and death.
    #[error("no answer from the VIP through the tunnel")]
    NoSynAck,
    /// Nobody listens at the port (RST).
    #[error("connection refused")]
    Refused,
    /// The connection was closed or reset before the answer was whole.
    #[error("connection closed before the answer")]
    Closed,
    /// A connection, and no answer over it in time.
    #[error("connected, and no answer in time")]
    NoAnswer,
    /// Another status than those asked for.
    #[error("status {0}")]
    Status(u16),
    /// The body does not contain what it should.
    #[error("the body does not have the text")]
    Body,
    /// Not an HTTP/1 answer, or one larger than is read of it.
    #[error("not an HTTP/1 answer")]
    NotHttp,
    /// No TLS session.
    #[error("TLS failed")]
    Tls,
}

impl Failure {
    /// As a counter label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::Unreachable => "unreachable",
            Self::NeighbourFailed => "neighbour_failed",
            Self::NoSynAck => "no_syn_ack",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::NoAnswer => "no_answer",
            Self::Status(_) => "status",
            Self::Body => "body",
            Self::NotHttp => "not_http",
            Self::Tls => "tls",
        }
    }

    /// Nothing at all came back from the backend's host: if that lasts, it is dead.
    pub const fn is_silence(self) -> bool {
        match self {
            Self::NoConnection | Self::Unreachable | Self::NeighbourFailed => true,
            Self::NoSynAck
            | Self::Refused
            | Self::Closed
            | Self::NoAnswer
            | Self::Status(_)
            | Self::Body
            | Self::NotHttp
            | Self::Tls => false,
        }
    }

    /// Somebody who knows has found it dead: the kernel, after asking for its MAC address again and again.
    pub const fn is_confirmed(self) -> bool {
        matches!(self, Self::NeighbourFailed)
    }
}

/// Why a probe was not made: this node's own troubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Fault {
    /// Out of file descriptors or memory.
    #[error("no socket: out of file descriptors or memory")]
    NoSocket,
    /// No local address or port to send from.
    #[error("no local address or port to send from")]
    NoSource,
    /// A firewall or a policy of this host forbids it.
    #[error("this host forbids it")]
    NotPermitted,
    /// No next hop to send through the tunnel by, or the backend is this node: there is no tunnel then.
    #[error("no way to send it through a tunnel")]
    NoWay,
    /// No backend has answered this check lately: what is wrong is likelier here, or with the check, than everywhere.
    #[error("no node answers this check: is it served at all, and does the answer reach this node?")]
    NobodyAnswers,
    /// No VIP that can be asked for: none of TCP without source ranges that has settled.
    #[error("no VIP to ask for")]
    NoVip,
}

impl Fault {
    /// As a counter label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSocket => "no_socket",
            Self::NoSource => "no_source",
            Self::NotPermitted => "not_permitted",
            Self::NoWay => "no_way",
            Self::NobodyAnswers => "nobody_answers",
            Self::NoVip => "no_vip",
        }
    }
}
