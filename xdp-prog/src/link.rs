//! The link layer: Ethernet (IEEE 802.3) and up to two VLAN tags (802.1Q, 802.1ad). More are [`crate::balance::unusual`]'s.

use crate::{
    machine::{Frame, load},
    verdict::Verdict,
    wire::{ETH_LEN, ETH_TYPE, TYPE_8021AD_BE, TYPE_8021Q_BE, VLAN_LEN},
};

/// The link layer of a frame: 14 to 22 bytes.
#[derive(Clone, Copy)]
pub struct Link {
    /// Bytes before the IP header.
    pub len: usize,
    /// Ethertype as on the wire.
    pub ethertype: u16,
    /// Tag words (TPID and TCI) as on the wire, the outermost in the lower half; 0 where there is none.
    pub tags: u64,
}

/// Parses Ethernet and up to two VLAN tags.
///
/// # Errors
///
/// [`Verdict::PassUnparsed`] where the frame is too short.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Link, Verdict> {
    let (start, end) = (frame.start(), frame.end());
    if start + ETH_LEN > end {
        return Err(Verdict::PassUnparsed);
    }
    // SAFETY: inside the frame, as just compared.
    let ethertype: u16 = unsafe { load(start + ETH_TYPE) };
    let mut link = Link {
        len: ETH_LEN,
        ethertype,
        tags: 0,
    };
    if is_tag(ethertype) {
        if start + ETH_LEN + VLAN_LEN > end {
            return Err(Verdict::PassUnparsed);
        }
        // SAFETY: inside the frame, as just compared.
        unsafe {
            link.tags = u64::from(load::<u32>(start + ETH_TYPE));
            link.ethertype = load(start + ETH_TYPE + VLAN_LEN);
        }
        link.len = ETH_LEN + VLAN_LEN;
        if is_tag(link.ethertype) {
            if start + ETH_LEN + 2 * VLAN_LEN > end {
                return Err(Verdict::PassUnparsed);
            }
            // SAFETY: inside the frame, as just compared.
            unsafe {
                link.tags = load(start + ETH_TYPE);
                link.ethertype = load(start + ETH_TYPE + 2 * VLAN_LEN);
            }
            link.len = ETH_LEN + 2 * VLAN_LEN;
        }
    }
    Ok(link)
}

#[inline(always)]
pub(crate) fn is_tag<T: Into<u64>>(ethertype: T) -> bool {
    let ethertype = ethertype.into();
    ethertype == u64::from(TYPE_8021Q_BE) || ethertype == u64::from(TYPE_8021AD_BE)
}
