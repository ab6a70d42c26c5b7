//! MSS clamping on whole segments, as the slow path calls it: whatever the bytes, nothing but the option's value and the checksum
//! changes, and the checksum stays as right as it was.

use etherparse::TcpHeader;
use proptest::prelude::*;
use xdp_prog::{
    abi::LineMeta,
    mss::{clamp_segment, most},
};

const SOURCE: [u8; 4] = [198, 51, 100, 7];
const VIP: [u8; 4] = [192, 0, 2, 80];

/// A segment with these options, a right checksum and some payload.
fn segment(options: &[u8], syn: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(40_000, 443, 0x1234_5678, 65_535);
    header.syn = syn;
    header.set_options_raw(options).expect("at most 40 bytes");
    header.checksum = header.calc_checksum_ipv4_raw(SOURCE, VIP, payload).expect("short");
    [&header.to_bytes()[..], payload].concat()
}

fn is_right(segment: &[u8]) -> bool {
    let (header, payload) = TcpHeader::from_slice(segment).expect("a header");
    header.calc_checksum_ipv4_raw(SOURCE, VIP, payload) == Ok(header.checksum)
}

#[test]
fn the_value_is_lowered_and_the_checksum_follows_at_even_and_odd_offsets() {
    for nops in 0..=36 {
        let mut options = vec![1; nops];
        options.extend([2, 4, 0x23, 0x28]);
        options.resize(options.len().next_multiple_of(4), 0);
        let mut bytes = segment(&options, true, b"fast open");
        assert!(clamp_segment(&mut bytes, 1440));
        assert_eq!(bytes[20 + nops..24 + nops], [2, 4, 0x05, 0xa0]);
        assert!(is_right(&bytes), "{nops} no operations before it");
        let once = bytes.clone();
        assert!(
            !clamp_segment(&mut bytes, 1440) && !clamp_segment(&mut bytes, 9000),
            "never raised"
        );
        assert_eq!(bytes, once);
    }
}

#[test]
fn only_syns_are_touched_and_a_limit_of_0_means_none() {
    let options = [2, 4, 0x05, 0xb4];
    let mut bytes = segment(&options, false, &[]);
    assert!(!clamp_segment(&mut bytes, 1000));
    let mut bytes = segment(&options, true, &[]);
    assert!(!clamp_segment(&mut bytes, 0));
    assert_eq!(bytes, segment(&options, true, &[]));
}

#[test]
fn the_limit_is_what_all_headers_leave_of_the_mtu() {
    let v4 = |mtu| LineMeta::new(0, 0, 0, mtu, 1);
    let v6 = |mtu| LineMeta::new(LineMeta::OUTER_V6, 0, 0, mtu, 1);
    assert_eq!((most(v4(1500), false), most(v4(1500), true)), (1440, 1420));
    assert_eq!((most(v6(1500), false), most(v6(1500), true)), (1420, 1400));
    assert_eq!((most(v4(u16::MAX), false), most(v4(61), false)), (65_475, 1));
    assert_eq!((most(v4(60), false), most(v4(0), true), most(v6(99), true)), (0, 0, 0));
}

proptest! {
    #[test]
    fn any_bytes_at_all_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..100), most in any::<u16>()) {
        let before = bytes.clone();
        let changed = clamp_segment(&mut bytes, most);
        prop_assert!(changed || bytes == before);
        prop_assert_eq!(bytes.len(), before.len());
        let moved = before.iter().zip(&bytes).filter(|(was, is)| was != is).count();
        prop_assert!(moved <= 4, "the value and the checksum");
    }

    #[test]
    fn any_options_leave_the_checksum_right(
        words in 0_usize..=10,
        fill in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 1, 1, 2, 3, 4, 5, 8, 10, 0xff]), 40),
        payload in prop::collection::vec(any::<u8>(), 0..20),
        most in 1_u16..3000,
    ) {
        let mut bytes = segment(&fill[..words * 4], true, &payload);
        clamp_segment(&mut bytes, most);
        prop_assert!(is_right(&bytes));
    }
}
