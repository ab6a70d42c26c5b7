//! What is said when ownership of a VIP address is taken, to the byte.

use std::net::Ipv6Addr;

use lb_core::slow::{announcement, solicited_node};

use crate::{bed::MAC, frames};

#[test]
fn an_ipv4_address_is_announced_by_a_request_and_a_reply() {
    let announce = |operation: u8, target: [u8; 6]| {
        let mut frame = vec![0xff; 6]; // to all
        frame.extend([2, 0, 0, 0, 0, 0x0a]); // from us
        frame.extend([8, 6]); // ARP
        frame.extend([0, 1, 8, 0, 6, 4, 0, operation]); // Ethernet, IPv4
        frame.extend([2, 0, 0, 0, 0, 0x0a, 203, 0, 113, 10]); // sender
        frame.extend(target);
        frame.extend([203, 0, 113, 10]);
        frame
    };
    let expected = [announce(1, [0; 6]), announce(2, [2, 0, 0, 0, 0, 0x0a])];
    assert_eq!(announcement([203, 0, 113, 10].into(), MAC), expected);
}

#[test]
fn an_ipv6_address_is_announced_by_an_unsolicited_advertisement() {
    let address = "2001:db8::10".parse().unwrap();
    let [frame] = &announcement(address, MAC)[..] else {
        panic!("one frame");
    };
    let (protocol, message) = frames::opened(frame);
    assert_eq!(protocol, 58);
    // To all nodes, from us, IPv6; no class, no label; 32 bytes of ICMPv6, hop limit 255.
    assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x0a, 0x86, 0xdd]);
    assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
    let vip = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
    assert_eq!(frame[22..38], vip);
    assert_eq!(frame[38..54], [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    // An advertisement that overrides and was not asked for, and where the target is.
    assert_eq!(message[..2], [136, 0]);
    assert_eq!(message[4..8], [0x20, 0, 0, 0]);
    assert_eq!(message[8..24], vip);
    assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 0x0a]);
}

#[test]
fn the_group_has_the_last_three_bytes_of_the_address() {
    // The example of RFC 4291, 2.7.1.
    let address: Ipv6Addr = "4037::1:800:200e:8c6c".parse().unwrap();
    assert_eq!(
        solicited_node(address),
        "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap()
    );
}
