//! One connection of a session: what was said on it, and when it must be heard of.
//!
//! Never knows of the others: which of two survives is [`super::session`]'s.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    LocalAddresses, Notification, SessionError, State,
    framing::Framer,
    message::Kind,
    open::{Agreed, Open},
    rib::Rib,
};

/// Why a connection must end: what the peer is told of it, if anything, and what is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) notification: Option<Notification>,
    pub(super) error: SessionError,
}

impl From<Notification> for Fault {
    /// A breach of the protocol.
    fn from(notification: Notification) -> Self {
        Self {
            error: SessionError::Protocol(notification.clone()),
            notification: Some(notification),
        }
    }
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Phase {
    OpenSent,
    OpenConfirm(Agreed),
    Established(Agreed, Rib),
}

impl Phase {
    pub(super) const fn state(&self) -> State {
        match self {
            Self::OpenSent => State::OpenSent,
            Self::OpenConfirm(_) => State::OpenConfirm,
            Self::Established(..) => State::Established,
        }
    }

    pub(super) const fn agreed(&self) -> Option<&Agreed> {
        match self {
            Self::OpenSent => None,
            Self::OpenConfirm(agreed) | Self::Established(agreed, _) => Some(agreed),
        }
    }

    pub(super) const fn is_established(&self) -> bool {
        matches!(self, Self::Established(..))
    }

    /// A message that has no place in this state (RFC 6608).
    pub(super) const fn unexpected(&self) -> Notification {
        Notification::bare(
            5,
            match self {
                Self::OpenSent => 1,
                Self::OpenConfirm(_) => 2,
                Self::Established(..) => 3,
            },
        )
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) phase: Phase,
    pub(super) local: LocalAddresses,
    /// Whether the session is over IPv6.
    pub(super) over_v6: bool,
    pub(super) framer: Framer,
    /// When the peer is gone unless it is heard of.
    pub(super) hold_at: Option<Duration>,
    /// When the peer must hear of us.
    pub(super) keepalive_at: Option<Duration>,
    /// When it was established.
    pub(super) up_since: Option<Duration>,
}

/// What a message means to the session.
#[derive(Debug)]
pub(super) enum Said {
    /// The peer opens; what holds would be this.
    Open { agreed: Agreed, peer_id: Ipv4Addr },
    /// The peer agrees: the session is up.
    Confirmed,
    /// It is alive.
    Alive,
    /// Routes.
    Update(super::received::Received),
    /// It wants IPv4 routes again, or IPv6 ones.
    Refresh { is_v4: bool },
}

impl Connection {
    /// Reads a message by the state that this connection is in.
    pub(super) fn read(
        &self,
        kind: Kind,
        body: &[u8],
        config: &super::PeerConfig,
        router_id: Ipv4Addr,
    ) -> Result<Option<Said>, Fault> {
        let said = match (kind, &self.phase) {
            (Kind::Notification, _) => {
                let error = SessionError::Peer(Notification::read(body));
                return Err(Fault {
                    notification: None,
                    error,
                });
            }
            (Kind::Open, Phase::OpenSent) => {
                let open = Open::read(body)?;
                let agreed = open.agree(config, router_id, self.local, self.over_v6)?;
                Said::Open {
                    agreed,
                    peer_id: open.router_id(),
                }
            }
            (Kind::Keepalive, Phase::OpenConfirm(_)) => Said::Confirmed,
            (Kind::Keepalive, Phase::Established(..)) => Said::Alive,
            (Kind::Update, Phase::Established(agreed, _)) => {
                Said::Update(super::received::read(body, agreed.terms.asn4)?)
            }
            (Kind::RouteRefresh, Phase::Established(agreed, _)) => match *body {
                [0, 1, 0, 1] => Said::Refresh { is_v4: true },
                [0, 2, 0, 1] => Said::Refresh { is_v4: false },
                // Of another family, or a demarcation that means nothing to who keeps no routes.
                [_, _, _, _] => return Ok(None),
                _ if agreed.enhanced_refresh => return Err(Notification::new(7, 1, refresh_message(body)).into()),
                _ => return Err(Notification::new(1, 2, length_of(body)).into()),
            },
            (Kind::Open | Kind::Keepalive | Kind::Update | Kind::RouteRefresh, phase) => {
                return Err(phase.unexpected().into());
            }
        };
        Ok(Some(said))
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.hold_at.into_iter().chain(self.keepalive_at).min()
    }
}

fn length_of(body: &[u8]) -> [u8; 2] {
    u16::try_from(super::message::HEADER_BYTES + body.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes()
}

/// RFC 7313 5: the whole message is the data.
fn refresh_message(body: &[u8]) -> Vec<u8> {
    let mut message = vec![0xff; 16];
    message.extend(length_of(body));
    message.push(5);
    message.extend_from_slice(body);
    message
}
