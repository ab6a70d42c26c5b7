//! Are the two buckets of a key as good as chance? Sets of VIPs have a lot in common: one address with many ports, many addresses
//! with one port, or both.

use std::net::{Ipv4Addr, Ipv6Addr};

use xdp_prog::abi::{KeyV4, KeyV6, WAYS_V4, WAYS_V6};

const TCP: u8 = 6;
const SALTS: [u64; 4] = [0, 1, 0x5eed_0000_5a17, 0x9e37_79b9_7f4a_7c15];
/// VIPs of every set.
const VIPS: u32 = 8_192;

/// More than chance leaves over, out of [`VIPS`]: one multiplication is not quite chance, and these the planner moves.
const FEW: usize = 32;

/// The first two of a key's three buckets: the third is for sets that these cannot hold, which planner and program share alike.
fn two([first, second, _]: [u32; 3]) -> (u32, u32) {
    (first, second)
}

type Set<K> = (&'static str, fn(u32) -> K);

fn v4(address: u32, port: u32) -> KeyV4 {
    KeyV4::new(Ipv4Addr::from_bits(address), TCP, port as u16)
}

fn v6(low: u32, high: u32, port: u32) -> KeyV6 {
    let address = 0x2001_0db8_u128 << 96 | u128::from(high) << 64 | u128::from(low);
    KeyV6::new(Ipv6Addr::from_bits(address), TCP, port as u16)
}

const OF_V4: [Set<KeyV4>; 7] = [
    ("addresses of one network", |n| v4(0xc000_0200 + n, 443)),
    ("one address in every /24", |n| v4(n << 8 | 1, 443)),
    ("ports of one address", |n| v4(0xc000_0250, 1024 + n)),
    ("256 addresses, 32 ports", |n| v4(0xc000_0200 + n % 256, 8000 + n / 256)),
    ("32 addresses, 256 ports", |n| v4(0xc000_0200 + n % 32, 30_000 + n / 32)),
    ("address and port in step", |n| v4(0x0a00_0000 + n, n)),
    ("address entries", |n| {
        KeyV4::address(Ipv4Addr::from_bits(0xc000_0200 + n))
    }),
];

const OF_V6: [Set<KeyV6>; 7] = [
    ("addresses of one network", |n| v6(n, 1, 443)),
    ("one address in every /64", |n| v6(1, n, 443)),
    ("ports of one address", |n| v6(0x80, 1, 1024 + n)),
    ("256 addresses, 32 ports", |n| v6(n % 256, 1, 8000 + n / 256)),
    ("32 addresses, 256 ports", |n| v6(n % 32, 1, 30_000 + n / 32)),
    ("subnet and host in step", |n| v6(n, n, 443)),
    ("address entries", |n| {
        KeyV6::address(Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | u128::from(n)))
    }),
];

/// Places keys one after the other: into the first bucket while there is room, else into the second. How many find none.
fn left_over(buckets: usize, ways: usize, choices: impl Iterator<Item = (u32, u32)>) -> usize {
    let mut taken = vec![0_usize; buckets];
    choices
        .filter(|&(first, second)| {
            let place = if taken[first as usize] < ways { first } else { second } as usize;
            taken[place] += 1;
            taken[place] > ways
        })
        .count()
}

/// `SplitMix64`: what chance would choose.
fn random(of: u64, buckets: usize) -> u32 {
    let z = of.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) % buckets as u64) as u32
}

/// A planner may move entries and does better; this one only shows that the choices of sets that have much in common are about as
/// good as chance would make them, with the same first bucket for all keys of an address.
#[test]
fn the_choices_place_sets_of_vips_about_as_well_as_chance_would() {
    for salt in SALTS {
        for spare in [4, 8] {
            let buckets = VIPS as usize / WAYS_V4 * spare;
            let mask = buckets as u64 - 1;
            for (name, key) in OF_V4 {
                let chance = |n| (random(key(n).0 & 0xffff_ffff, buckets), random(key(n).0, buckets));
                let most = left_over(buckets, WAYS_V4, (0..VIPS).map(chance)) * 3 + FEW;
                let left = left_over(buckets, WAYS_V4, (0..VIPS).map(|n| two(key(n).buckets(salt, mask))));
                assert!(
                    left <= most,
                    "IPv4, {name}, 1/{spare} full, salt {salt:#x}: {left} without room, at most {most}"
                );
            }
            let buckets = VIPS as usize / WAYS_V6 * spare;
            let mask = buckets as u64 - 1;
            for (name, key) in OF_V6 {
                let chance = |n| {
                    let address = key(n).high.rotate_left(32) ^ key(n).low;
                    (
                        random(address, buckets),
                        random(address ^ key(n).tail.rotate_left(8), buckets),
                    )
                };
                let most = left_over(buckets, WAYS_V6, (0..VIPS).map(chance)) * 3 + FEW;
                let left = left_over(buckets, WAYS_V6, (0..VIPS).map(|n| two(key(n).buckets(salt, mask))));
                assert!(
                    left <= most,
                    "IPv6, {name}, 1/{spare} full, salt {salt:#x}: {left} without room, at most {most}"
                );
            }
        }
    }
}

/// A key whose two buckets are one has but one choice: one in as many keys as there are buckets, not more.
#[test]
fn the_two_choices_are_seldom_the_same() {
    for salt in SALTS {
        for mask in [0xff, 0xfff] {
            let ideal = f64::from(VIPS) / (mask as f64 + 1.0);
            let most = ideal + 6.0 * ideal.sqrt() + 6.0;
            let same = |choices: (u32, u32)| choices.0 == choices.1;
            for (name, key) in OF_V4 {
                let count = (0..VIPS).filter(|&n| same(two(key(n).buckets(salt, mask)))).count();
                assert!(
                    (count as f64) < most,
                    "IPv4, {name}, salt {salt:#x}: {count} of {VIPS}, at most {most:.0}"
                );
            }
            for (name, key) in OF_V6 {
                let count = (0..VIPS).filter(|&n| same(two(key(n).buckets(salt, mask)))).count();
                assert!(
                    (count as f64) < most,
                    "IPv6, {name}, salt {salt:#x}: {count} of {VIPS}, at most {most:.0}"
                );
            }
        }
    }
}
