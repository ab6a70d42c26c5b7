//! A BGP peer that may say anything, at any point of a session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_core::bgp::{
    Action, Attributes, ConnectionId, Event, Families, LocalAddresses, MAX_MESSAGE_BYTES, Origin, PeerConfig, Session,
};

use super::frames::Bytes;

const CONFIG: PeerConfig = PeerConfig {
    local_asn: 65000,
    peer_asn: 65001,
    families: Families { v4: true, v6: true },
    hold_s: 90,
    connect_retry_s: 5,
    passive: false,
    next_hop_v4: None,
    next_hop_v6: None,
    restart_time_s: Some(120),
};
const CONNECTION: ConnectionId = ConnectionId {
    origin: Origin::Theirs,
    number: 1,
};
/// AS 65001, a hold time of 90 s, four octets, both families, route refresh.
const OPEN: &[u8] = &[
    4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 2, 22, 2, 20, 1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4, 0, 0, 0xfd, 0xe9, 2, 0,
];

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xff; 16][..], &length, &[kind], body].concat()
}

/// Messages with right headers and any bodies, or bytes as they are, before or after the session is up; what is sent is whole
/// messages.
pub fn bgp(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let mut session = Session::new(CONFIG, [192, 0, 2, 1].into(), 1, false);
    let mut now = Duration::from_secs(1);
    let attributes = Arc::new(Attributes::default());
    let routes: BTreeMap<_, _> = [("192.0.2.1/32".parse().unwrap(), attributes)].into();
    session.announce(&routes, now);
    check(&session.step(Event::Start, now));
    let up = Event::TransportUp {
        connection: CONNECTION,
        local: LocalAddresses {
            v4: Some([10, 0, 0, 1].into()),
            v6: None,
        },
        remote: [10, 0, 0, 2].into(),
    };
    check(&session.step(up, now));
    let mut hear = |session: &mut Session, bytes: &[u8]| {
        now += Duration::from_millis(10);
        check(&session.step(
            Event::Bytes {
                connection: CONNECTION,
                bytes,
            },
            now,
        ));
        check(&session.step(Event::Timer, now));
        let _ = session.view();
        let error = session.view().last_error;
        let _ = error.map(|(_, error)| (error.to_string(), error.kind(), error.advice()));
    };
    if how & 1 == 1 {
        hear(&mut session, &message(1, OPEN));
        assert!(session.view().last_error.is_none());
    }
    if how & 3 == 3 {
        hear(&mut session, &message(4, &[]));
        assert_eq!(session.view().announced, 1);
    }
    if how & 4 == 4 {
        hear(&mut session, bytes.0);
        return;
    }
    while !bytes.is_empty() {
        let kind = bytes.u8() % 7;
        let length = usize::from(bytes.u8());
        let body = bytes.take(length).to_vec();
        hear(&mut session, &message(kind, &body));
    }
}

fn check(actions: &[Action]) {
    for action in actions {
        let Action::Send { bytes, .. } = action else { continue };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
            assert!((19..=MAX_MESSAGE_BYTES).contains(&length));
            rest = &rest[length..];
        }
    }
}
