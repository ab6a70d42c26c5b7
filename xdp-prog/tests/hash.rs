//! What the hash must do for the balancer: spread flows evenly over slots whatever they have in common, change half of what
//! matters with any bit of input, and answer to its seed.
//!
//! Bounds on chi-square are six standard deviations from its mean (for n degrees of freedom n and sqrt(2n)), so a good hash
//! fails once in a billion runs, and these runs are always the same.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::{Ipv4Addr, Ipv6Addr};

use xdp_prog::hash::{client_v4, client_v6, flow_v4, flow_v6};

const SEEDS: [[u64; 4]; 4] = [
    [0; 4],
    [1, 0, 0, 0],
    [u64::MAX; 4],
    [
        0x0123_4567_89ab_cdef,
        0xfedc_ba98_7654_3210,
        0x0f1e_2d3c_4b5a_6978,
        0x8796_a5b4_c3d2_e1f0,
    ],
];
const TCP: u8 = 6;

fn v4(seed: &[u64; 4], source: u32, source_port: u16, destination_port: u16) -> u64 {
    let halves = [
        Ipv4Addr::from_bits(source).octets(),
        Ipv4Addr::new(192, 0, 2, 80).octets(),
    ]
    .concat();
    let addresses = u64::from_ne_bytes(halves.try_into().unwrap());
    flow_v4(seed, addresses, ports(source_port, destination_port), TCP)
}

fn v6(seed: &[u64; 4], source: u128, source_port: u16, destination_port: u16) -> u64 {
    let vip = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x80).to_bits();
    flow_v6(seed, wire(source), wire(vip), ports(source_port, destination_port), TCP)
}

fn wire(address: u128) -> [u64; 2] {
    let bytes = address.to_be_bytes();
    [
        u64::from_ne_bytes(bytes[..8].try_into().unwrap()),
        u64::from_ne_bytes(bytes[8..].try_into().unwrap()),
    ]
}

fn ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

const CLIENT_V4: u32 = 0xc633_6407;
const CLIENT_V6: u128 = 0x2001_0db8_000c_0000_0000_0000_0000_0007;

/// Hash of the nth flow of a family, for a seed.
type Family = Box<dyn Fn(&[u64; 4], u32) -> u64>;

/// Hash of all flows of the client `n`.
fn of_v4_client(seed: &[u64; 4], source: u32) -> u64 {
    client_v4(seed, u32::from_ne_bytes(source.to_be_bytes()))
}

/// Families of flows that differ in one thing only, as real ones do.
fn flows() -> Vec<(&'static str, Family)> {
    vec![
        (
            "IPv4, source ports of one client",
            Box::new(|seed, n| v4(seed, CLIENT_V4 + (n >> 16), n as u16, 80)),
        ),
        (
            "IPv4, clients of one network",
            Box::new(|seed, n| v4(seed, 0x0a00_0000 + n, 40_000, 80)),
        ),
        (
            "IPv4, one client in every /24",
            Box::new(|seed, n| v4(seed, n << 8 | 7, 40_000, 80)),
        ),
        (
            "IPv4, networks by their first bytes",
            Box::new(|seed, n| v4(seed, n.reverse_bits(), 40_000, 80)),
        ),
        (
            "IPv4, destination ports",
            Box::new(|seed, n| v4(seed, CLIENT_V4 + (n >> 16), 40_000, n as u16)),
        ),
        (
            "IPv4, even source ports only",
            Box::new(|seed, n| v4(seed, CLIENT_V4 + (n >> 15), (n as u16) << 1, 80)),
        ),
        (
            "IPv4, port and address in step",
            Box::new(|seed, n| v4(seed, 0x0a00_0000 + n, n as u16, 80)),
        ),
        (
            "IPv6, source ports of one client",
            Box::new(|seed, n| v6(seed, CLIENT_V6 + u128::from(n >> 16), n as u16, 80)),
        ),
        (
            "IPv6, clients of one network",
            Box::new(|seed, n| v6(seed, CLIENT_V6 + u128::from(n), 40_000, 80)),
        ),
        (
            "IPv6, one client in every /64",
            Box::new(|seed, n| v6(seed, CLIENT_V6 + (u128::from(n) << 64), 40_000, 80)),
        ),
        (
            "IPv6, one client in every /48",
            Box::new(|seed, n| v6(seed, CLIENT_V6 + (u128::from(n) << 80), 40_000, 80)),
        ),
        (
            "IPv6, by the EUI-64's vendor bytes",
            Box::new(|seed, n| v6(seed, CLIENT_V6 + (u128::from(n) << 40), 40_000, 80)),
        ),
        (
            "IPv6, destination ports",
            Box::new(|seed, n| v6(seed, CLIENT_V6 + u128::from(n >> 16), 40_000, n as u16)),
        ),
        (
            "IPv4 affinity, clients of one network",
            Box::new(|seed, n| of_v4_client(seed, 0x0a00_0000 + n)),
        ),
        (
            "IPv4 affinity, one client in every /24",
            Box::new(|seed, n| of_v4_client(seed, n << 8 | 7)),
        ),
        (
            "IPv4 affinity, networks by their first bytes",
            Box::new(|seed, n| of_v4_client(seed, n.reverse_bits())),
        ),
        (
            "IPv6 affinity, clients of one network",
            Box::new(|seed, n| client_v6(seed, wire(CLIENT_V6 + u128::from(n)))),
        ),
        (
            "IPv6 affinity, one client in every /64",
            Box::new(|seed, n| client_v6(seed, wire(CLIENT_V6 + (u128::from(n) << 64)))),
        ),
        (
            "IPv6 affinity, one client in every /48",
            Box::new(|seed, n| client_v6(seed, wire(CLIENT_V6 + (u128::from(n) << 80)))),
        ),
    ]
}

fn chi_square(counts: &[u32]) -> f64 {
    let ideal = counts.iter().map(|&count| f64::from(count)).sum::<f64>() / counts.len() as f64;
    counts
        .iter()
        .map(|&count| (f64::from(count) - ideal).powi(2) / ideal)
        .sum()
}

fn upper_bound(slots: usize) -> f64 {
    let degrees = (slots - 1) as f64;
    degrees + 6.0 * (2.0 * degrees).sqrt()
}

#[test]
fn flows_that_differ_in_one_thing_spread_evenly_over_slots() {
    for seed in &SEEDS {
        for (name, hash) in flows() {
            for log2 in [8, 12, 16] {
                let slots = 1_usize << log2;
                let mut counts = vec![0_u32; slots];
                for n in 0..(slots as u32 * 8).max(1 << 15) {
                    counts[(hash(seed, n) >> (64 - log2)) as usize] += 1;
                }
                let (is, most) = (chi_square(&counts), upper_bound(slots));
                // Far too even is a pattern as well, though not one that hurts: it is not asked for.
                assert!(
                    is < most,
                    "{name}, {slots} slots, seed {seed:x?}: chi-square {is:.0}, at most {most:.0}"
                );
            }
        }
    }
}

/// The bits below the slot's carry the flow into the outer source address, its last byte from the best of them. The lower half is
/// weaker, and needed only where a prefix leaves more than 16 bits. Clients' hashes are left out: their middle bits fall a little
/// short for a seed of nearly nothing but zeroes, and all flows of a client share them anyway.
#[test]
fn the_bits_of_the_outer_source_spread_evenly_too() {
    for seed in &SEEDS {
        for (name, hash) in flows().into_iter().filter(|(name, _)| !name.contains("affinity")) {
            for shift in [32, 36, 40] {
                let mut counts = vec![0_u32; 256];
                for n in 0..1 << 15 {
                    counts[(hash(seed, n) >> shift & 0xff) as usize] += 1;
                }
                let is = chi_square(&counts);
                assert!(
                    is < upper_bound(256),
                    "{name}, bits from {shift} on, seed {seed:x?}: chi-square {is:.0}"
                );
            }
        }
    }
}

/// `SplitMix64`, for inputs that have nothing in common.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// How often each of the top 16 bits changes when one bit of input does, over `bits` bits of input.
fn avalanche(bits: usize, hash: impl Fn(&[u64; 5]) -> u64) -> Vec<[f64; 16]> {
    const TRIALS: u32 = 4_000;
    let mut state = 7;
    let mut changed = vec![[0_u32; 16]; bits];
    for _ in 0..TRIALS {
        let input: [u64; 5] = std::array::from_fn(|_| random(&mut state));
        let before = hash(&input);
        for (bit, changed) in changed.iter_mut().enumerate() {
            let mut flipped = input;
            flipped[bit / 64] ^= 1 << (bit % 64);
            let difference = (before ^ hash(&flipped)) >> 48;
            for (position, count) in changed.iter_mut().enumerate() {
                *count += (difference >> position & 1) as u32;
            }
        }
    }
    changed
        .iter()
        .map(|counts| counts.map(|count| f64::from(count) / f64::from(TRIALS)))
        .collect()
}

/// Any bit of the input changes each of the bits that choose a slot about as often as not. Over random other bits 4,000 trials
/// have a standard deviation of 0.8 %.
#[test]
fn every_bit_of_a_flow_changes_every_bit_of_the_slot() {
    let of_v4 = avalanche(64 + 32, |input| flow_v4(&SEEDS[3], input[0], input[1] as u32, TCP));
    let of_v6 = avalanche(4 * 64 + 32, |i| {
        flow_v6(&SEEDS[3], [i[0], i[1]], [i[2], i[3]], i[4] as u32, TCP)
    });
    let of_v4_client = avalanche(32, |input| client_v4(&SEEDS[3], input[0] as u32));
    let of_v6_client = avalanche(2 * 64, |i| client_v6(&SEEDS[3], [i[0], i[1]]));
    for (family, table) in [
        ("IPv4", of_v4),
        ("IPv6", of_v6),
        ("IPv4 affinity", of_v4_client),
        ("IPv6 affinity", of_v6_client),
    ] {
        for (bit, row) in table.iter().enumerate() {
            let mean = row.iter().sum::<f64>() / 16.0;
            assert!(
                (0.4..=0.6).contains(&mean),
                "{family}, input bit {bit} changes {mean:.3} of the slot's bits"
            );
            for (position, share) in row.iter().enumerate() {
                assert!(
                    (0.25..=0.75).contains(share),
                    "{family}, input bit {bit} changes bit {} with probability {share:.3}",
                    48 + position
                );
            }
        }
    }
}

#[test]
fn every_word_of_the_seed_counts_for_ipv6_and_the_first_two_for_ipv4() {
    for word in 0..4 {
        for bit in [0, 17, 63] {
            let mut seed = SEEDS[3];
            seed[word] ^= 1 << bit;
            let moved = |hash: &dyn Fn(&[u64; 4], u32) -> u64| {
                (0..4_096)
                    .filter(|&n| hash(&SEEDS[3], n) >> 56 != hash(&seed, n) >> 56)
                    .count()
            };
            let of_v4 = moved(&|seed, n| v4(seed, CLIENT_V4 + n, n as u16, 80));
            let of_v6 = moved(&|seed, n| v6(seed, CLIENT_V6 + u128::from(n), n as u16, 80));
            // Of 256 slots all but one in 256 flows go to another one.
            assert!(
                of_v6 > 4_096 * 9 / 10,
                "word {word}, bit {bit}: {of_v6} of 4,096 IPv6 flows moved"
            );
            if word < 2 {
                assert!(
                    of_v4 > 4_096 * 9 / 10,
                    "word {word}, bit {bit}: {of_v4} of 4,096 IPv4 flows moved"
                );
            }
        }
    }
}

#[test]
fn flows_and_their_replies_and_protocols_are_told_apart() {
    let seed = &SEEDS[3];
    let addresses = 0x5002_00c0_0764_33c6;
    let hash = |addresses, ports, protocol| flow_v4(seed, addresses, ports, protocol);
    let tcp = hash(addresses, ports(40_000, 80), 6);
    assert_ne!(tcp, hash(addresses, ports(40_000, 80), 17), "protocol");
    assert_ne!(tcp, hash(addresses, ports(80, 40_000), 6), "ports the other way round");
    assert_ne!(
        tcp,
        hash(addresses.rotate_left(32), ports(40_000, 80), 6),
        "addresses the other way round"
    );
    let [a, b] = [[1, 2], [3, 4]];
    let of_v6 = flow_v6(seed, a, b, 7, 6);
    assert_ne!(of_v6, flow_v6(seed, b, a, 7, 6), "addresses the other way round");
    assert_ne!(of_v6, flow_v6(seed, [2, 1], b, 7, 6), "halves the other way round");
    assert_ne!(of_v6, flow_v6(seed, a, b, 7, 17), "protocol");
}

/// All LB nodes of a group must choose the same slots, while they are upgraded one after the other too. Whoever changes the hash
/// on purpose writes the new numbers here, and in the change log that flows move.
#[test]
fn the_hash_is_what_it_was() {
    assert_eq!(
        flow_v4(&SEEDS[3], 0x5002_00c0_0764_33c6, 0x5000_409c, 6),
        0xd33f_7212_55ba_6f94
    );
    assert_eq!(
        flow_v6(&SEEDS[3], [1, 2], [3, 4], 0x5000_409c, 17),
        0xa480_7d52_6a80_90e6
    );
    assert_eq!(client_v4(&SEEDS[3], 0x0764_33c6), 0x1362_cbd6_7105_0f83);
    assert_eq!(client_v6(&SEEDS[3], [1, 2]), 0x6485_d4dc_026d_3a4b);
}
