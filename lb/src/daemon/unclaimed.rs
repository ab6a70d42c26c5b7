//! What came through the tunnel and nothing on the node claims dies on the node: policy rules that send packets for the VIP prefixes
//! into a black hole before the main table could route them back to the LB node.
//!
//! Never touches what the node claims: a local address wins in the `local` table, and a packet that kube-proxy has translated is
//! no longer for a VIP. A black hole and not `unreachable`: while kube-proxy is late, a client that hears nothing tries again.

use std::{collections::BTreeSet, net::IpAddr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle, IpVersion,
    packet_route::{
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use tokio::task::JoinHandle;

/// Who made a rule (`FRA_PROTOCOL`; 86 is V), so that what a killed process left is known as ours.
const PROTOCOL: u8 = 86;

/// Priority of the rules, by role: before the main table (32766), behind whatever else a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// `vipline run`.
    Lb = 32_000,
    /// `vipline node`.
    Node = 32_001,
}

/// Why the rules are not in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum RuleError {
    /// No netlink socket.
    #[error("netlink: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused.
    #[error("policy rule to drop unclaimed packets for {prefix} from {interface}: {source}")]
    Rule {
        interface: String,
        prefix: IpNet,
        source: rtnetlink::Error,
    },
    /// The kernel refused to list them.
    #[error("cannot list policy rules: {0}")]
    List(rtnetlink::Error),
    /// The kernel refused to take one away.
    #[error("cannot remove a policy rule: {0}")]
    Remove(rtnetlink::Error),
}

/// The rules of this daemon.
pub(super) struct Unclaimed {
    handle: Handle,
    connection: JoinHandle<()>,
    priority: Priority,
    rules: BTreeSet<(String, IpNet)>,
}

impl Unclaimed {
    /// Begins with what an earlier process of the same role left: [`Self::set`] keeps what is wanted of it.
    pub(super) async fn new(priority: Priority) -> Result<Self, RuleError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let mut this = Self {
            handle,
            connection: tokio::spawn(connection),
            priority,
            rules: BTreeSet::new(),
        };
        for message in this.ours().await? {
            match rule_of(&message) {
                Some(rule) => drop(this.rules.insert(rule)),
                None => this.remove(message).await?,
            }
        }
        Ok(this)
    }

    /// Rules that there are.
    pub(super) fn count(&self) -> usize {
        self.rules.len()
    }

    /// Makes the rules those of every interface with every prefix; what is there stays, so nothing slips through in between.
    pub(super) async fn set(&mut self, interfaces: &[&str], prefixes: &[IpNet]) -> Result<(), RuleError> {
        let wanted: BTreeSet<_> = interfaces
            .iter()
            .flat_map(|interface| prefixes.iter().map(|prefix| ((*interface).to_owned(), prefix.trunc())))
            .collect();
        if wanted == self.rules {
            return Ok(());
        }
        for (interface, prefix) in wanted.difference(&self.rules) {
            self.add(interface, *prefix).await.map_err(|source| RuleError::Rule {
                interface: interface.clone(),
                prefix: *prefix,
                source,
            })?;
        }
        for message in self.ours().await? {
            if !rule_of(&message).is_some_and(|rule| wanted.contains(&rule)) {
                self.remove(message).await?;
            }
        }
        self.rules = wanted;
        Ok(())
    }

    /// Takes all rules away.
    pub(super) async fn remove_all(&self) -> Result<(), RuleError> {
        for message in self.ours().await? {
            self.remove(message).await?;
        }
        Ok(())
    }

    async fn remove(&self, message: RuleMessage) -> Result<(), RuleError> {
        self.handle
            .rule()
            .del(message)
            .execute()
            .await
            .map_err(RuleError::Remove)
    }

    async fn add(&self, interface: &str, prefix: IpNet) -> Result<(), rtnetlink::Error> {
        let request = self
            .handle
            .rule()
            .add()
            .action(RuleAction::Blackhole)
            .priority(self.priority as u32)
            .input_interface(interface);
        let protocol = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
        match prefix {
            IpNet::V4(prefix) => {
                let mut request = request.v4().destination_prefix(prefix.addr(), prefix.prefix_len());
                request.message_mut().attributes.push(protocol);
                request.execute().await
            }
            IpNet::V6(prefix) => {
                let mut request = request.v6().destination_prefix(prefix.addr(), prefix.prefix_len());
                request.message_mut().attributes.push(protocol);
                request.execute().await
            }
        }
    }

    async fn ours(&self) -> Result<Vec<RuleMessage>, RuleError> {
        let mut ours = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = std::pin::pin!(self.handle.rule().get(version).execute());
            while let Some(rule) = rules.try_next().await.map_err(RuleError::List)? {
                let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
                if has(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
                    && has(&RuleAttribute::Priority(self.priority as u32))
                {
                    ours.push(rule);
                }
            }
        }
        Ok(ours)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Interface and prefix of a rule.
fn rule_of(message: &RuleMessage) -> Option<(String, IpNet)> {
    let interface = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(name) => Some(name.clone()),
        _ => None,
    })?;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(*address),
        _ => None,
    })?;
    let address: IpAddr = address;
    Some((interface, IpNet::new(address, message.header.dst_len).ok()?))
}
