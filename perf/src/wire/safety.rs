//! Into which interfaces nothing is sent. Never decides for the user: `--force` is his word.

use std::fs;

use anyhow::{Result, ensure};

/// Refuses an interface that carries a default route of the calling thread's namespace.
///
/// # Errors
///
/// When it does, and when the routes cannot be read.
pub(crate) fn check(interface: &str) -> Result<()> {
    let v4 = fs::read_to_string("/proc/thread-self/net/route")?;
    // Not there where IPv6 is off.
    let v6 = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    ensure!(
        !has_default_route(&v4, &v6, interface),
        "{interface} has a default route: a benchmark's load would go where this machine's own traffic goes. \
         Name an interface of the test network, or say --force"
    );
    Ok(())
}

/// Routes as in `/proc/net/route` and `/proc/net/ipv6_route`.
fn has_default_route(v4: &str, v6: &str, interface: &str) -> bool {
    let by_v4 = v4.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&interface) && fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    });
    let by_v6 = v6.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let to_all =
            fields.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0')) && fields.get(1) == Some(&"00");
        to_all && fields.last() == Some(&interface)
    });
    by_v4 || by_v6
}

#[cfg(test)]
mod tests {
    use super::has_default_route;

    const V4: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    const V6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
        fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth2\n";

    #[test]
    fn a_default_route_of_either_family_is_seen_and_others_are_not() {
        assert!(has_default_route(V4, V6, "eth0"));
        assert!(!has_default_route(V4, V6, "eth1"));
        assert!(has_default_route(V4, V6, "eth2"));
        assert!(!has_default_route(V4, "", "eth2"));
    }
}
