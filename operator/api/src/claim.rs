//! `AddressClaim`.

use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ServiceRef, TransportPort, schema::NameRule};

/// What its name must be, which is a rule of the whole object.
pub(crate) const NAMED: NameRule = NameRule {
    rule: "ip(self.spec.address).family() == 4 ? self.metadata.name == self.spec.address : self.metadata.name.size() == 39 && \
         isIP(self.metadata.name.replace('-', ':')) && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address)",
    message: "a claim is named by its address: IPv4 as it is, IPv6 as eight groups of four digits with dashes between",
};

/// An address in use. Its name is the address, so that a second creation is refused with 409: IPv4 as it is, IPv6 as
/// eight groups of four digits with dashes between. About 580 B, and 30 B for each further port.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "AddressClaim",
    shortname = "vclaim",
    category = "vipline",
    derive = "PartialEq",
    doc = "An address that Services use. Written by the operator only; creating it precedes any use of the address.",
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".spec.address"}"#,
    printcolumn = r#"{"name":"Pool","type":"string","jsonPath":".spec.pool"}"#,
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.holders[0].service.namespace"}"#,
    printcolumn = r#"{"name":"Service","type":"string","jsonPath":".spec.holders[0].service.name"}"#,
    printcolumn = r#"{"name":"Sharing-Key","type":"string","jsonPath":".spec.sharingKey"}"#,
    printcolumn = r#"{"name":"Installation","type":"string","jsonPath":".spec.installation","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("has(self.sharingKey) || self.holders.filter(h, h.use == 'LoadBalancer').size() <= 1")
        .message("without a sharing key there is one holder of a load balancer address"),
    validation = Rule::new("!has(oldSelf.installation) || !has(self.installation) || self.installation == oldSelf.installation")
        .message("a claim stays with its installation"),
)]
#[serde(rename_all = "camelCase")]
pub struct AddressClaimSpec {
    /// The address, in its shortest form (RFC 5952).
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(
        validation = Rule::new("isIP(self) && ip.isCanonical(self)").message("must be an IP address in its shortest form"),
        validation = Rule::new("self == oldSelf").message("the address of a claim never changes"),
    )]
    pub address: String,
    /// Installation of Vipline that the claim is of: the operator's namespace and its leader's Lease, `NAMESPACE/LEASE`. The
    /// operators of others leave it alone. Absent in claims of versions that did not say: the installation that serves a holder
    /// takes such a claim over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 317))]
    pub installation: Option<String>,
    /// Pool that the address came from.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// Key by which Services share it as their load balancer address; absent: one Service has it. (Holders by
    /// `spec.externalIPs` need no key.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub sharing_key: Option<String>,
    /// Services that use it, sorted by namespace and name. Their ports differ.
    #[schemars(length(min = 1, max = 512))]
    pub holders: Vec<Holder>,
}

/// A Service that uses an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The Service.
    pub service: ServiceRef,
    /// What it uses the address for: `LoadBalancer`, or `ExternalIP` where it named it in `spec.externalIPs`.
    #[serde(rename = "use")]
    pub used_as: Use,
    /// Its ports, sorted. No two holders have the same port of the same protocol.
    #[schemars(length(min = 1, max = 512))]
    pub ports: Vec<TransportPort>,
}

/// What a Service uses an address for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Use {
    /// Its load balancer address: the operator chose it and writes it into the status.
    LoadBalancer,
    /// Named in `spec.externalIPs`.
    ExternalIP,
}

impl AddressClaim {
    /// The name of an address's claim: an IPv4 address as it is; an IPv6 address as eight groups of four digits with
    /// dashes between, because names have no colons.
    pub fn name_of(address: std::net::IpAddr) -> String {
        match address {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => {
                let groups = address.segments().map(|group| format!("{group:04x}"));
                groups.join("-")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AddressClaim;

    #[test]
    fn names_of_claims_are_dns_names() {
        assert_eq!(AddressClaim::name_of([203, 0, 113, 7].into()), "203.0.113.7");
        assert_eq!(
            AddressClaim::name_of("2001:db8::a".parse().unwrap()),
            "2001-0db8-0000-0000-0000-0000-0000-000a"
        );
    }
}
