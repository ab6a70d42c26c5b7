//! Hashing: multiply and xorshift, because the kernel's VM has 64-bit multiplication at 1 ns and no wider one.
//!
//! Never the NIC's hash: its key differs from machine to machine, and every LB node must choose the same slot.

/// Odd constants with random-looking bits (the fractional parts that `SplitMix64` and MurmurHash3 use).
const C1: u64 = 0x9e37_79b9_7f4a_7c15;
const C2: u64 = 0xbf58_476d_1ce4_e5b9;
const C3: u64 = 0x94d0_49bb_1331_11eb;
const C4: u64 = 0xff51_afd7_ed55_8ccd;
const C5: u64 = 0xc4ce_b9fe_1a85_ec53;

/// Spreads one word; the upper half of the result is good in every bit. The shift brings down what the multiplication, which only
/// carries upwards, would leave at the top: ports, and the last bytes of an address as it stands in a packet.
#[inline(always)]
pub const fn mix(word: u64) -> u64 {
    (word ^ word >> 32).wrapping_mul(C1)
}

/// Hash of an IPv4 flow. `addresses` is source and destination as they stand in the header, `ports` source and destination
/// port likewise. The top bits choose the slot.
#[inline(always)]
pub const fn flow_v4(seed: &[u64; 4], addresses: u64, ports: u32, protocol: u8) -> u64 {
    let mut hash = (addresses ^ seed[0]).wrapping_mul(C1);
    hash ^= hash >> 32;
    hash = (hash ^ transport(ports, protocol) ^ seed[1]).wrapping_mul(C2);
    finish(hash)
}

/// Hash of an IPv6 flow; each address as its two halves as they stand in the header. The four products are independent, so the
/// CPU forms them side by side.
#[inline(always)]
pub const fn flow_v6(seed: &[u64; 4], source: [u64; 2], destination: [u64; 2], ports: u32, protocol: u8) -> u64 {
    let a = (source[0] ^ seed[0]).wrapping_mul(C1);
    let b = (source[1] ^ seed[1]).wrapping_mul(C3);
    let c = (destination[0] ^ seed[2]).wrapping_mul(C4);
    let d = (destination[1] ^ seed[3]).wrapping_mul(C5);
    let mut hash = (a ^ a >> 32)
        .wrapping_add(b ^ b >> 31)
        .wrapping_add(c ^ c >> 30)
        .wrapping_add(d ^ d >> 29);
    hash = (hash ^ hash >> 32 ^ transport(ports, protocol) ^ seed[1]).wrapping_mul(C2);
    finish(hash)
}

/// Hash of all flows of an IPv4 client, with the same seed: of its address as it stands in the header, and of nothing else. Without
/// VIP address, protocol and ports, so that two VIPs with one table send a client to one backend: HTTP and HTTPS of a Service.
#[inline(always)]
pub const fn client_v4(seed: &[u64; 4], source: u32) -> u64 {
    flow_v4(seed, source as u64, 0, 0)
}

/// Hash of all flows of an IPv6 client; see [`client_v4`]. All 128 bits count: a host that changes its address within its network
/// (RFC 8981) is another client.
#[inline(always)]
pub const fn client_v6(seed: &[u64; 4], source: [u64; 2]) -> u64 {
    flow_v6(seed, source, [0; 2], 0, 0)
}

#[inline(always)]
const fn transport(ports: u32, protocol: u8) -> u64 {
    ports as u64 | (protocol as u64) << 32
}

#[inline(always)]
const fn finish(hash: u64) -> u64 {
    (hash ^ hash >> 32).wrapping_mul(C3)
}
