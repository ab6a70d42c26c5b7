//! Whether this worker would answer ARP for VIP addresses in the LB nodes' place.
//!
//! Never changes a setting: kube-proxy in `ipvs` mode binds VIP addresses to a device, and who set it up without `strictARP` may have
//! reasons. It is said, with what to do.

use std::{fs, io};

use nix::net::if_::if_nametoindex;

/// Where kube-proxy in `ipvs` mode has VIP addresses.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// Says in the log when this node would answer for VIP addresses.
pub(super) fn warn() {
    if if_nametoindex(IPVS_DEVICE).is_err() {
        return;
    }
    match (setting("arp_ignore"), setting("arp_announce")) {
        (Ok(ignore), Ok(announce)) if is_strict(ignore, announce) => {}
        (Ok(ignore), Ok(announce)) => tracing::warn!(
            arp_ignore = ignore,
            arp_announce = announce,
            "kube-proxy runs in ipvs mode ({IPVS_DEVICE}) without strictARP: this node answers ARP for VIP addresses that LB nodes on its \
             segment own, and takes their traffic; set `ipvs.strictARP: true` in kube-proxy's configuration, or the sysctls \
             net.ipv4.conf.all.arp_ignore=1 and net.ipv4.conf.all.arp_announce=2"
        ),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!("whether this node answers ARP for VIP addresses on {IPVS_DEVICE} cannot be seen: {error}");
        }
    }
}

/// Whether addresses of one device are not answered for, nor announced, on another: as `strictARP` has it, or stricter.
const fn is_strict(ignore: u8, announce: u8) -> bool {
    ignore >= 1 && announce >= 2
}

/// Of all devices of this network namespace.
fn setting(name: &str) -> io::Result<u8> {
    let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/all/{name}"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::is_strict;

    #[test]
    fn strict_is_what_strict_arp_sets_and_what_is_stricter() {
        assert!(is_strict(1, 2) && is_strict(2, 2) && is_strict(8, 2));
        assert!(!is_strict(0, 0) && !is_strict(0, 2) && !is_strict(1, 0) && !is_strict(1, 1));
    }
}
