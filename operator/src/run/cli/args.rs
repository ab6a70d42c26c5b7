//! Arguments and their help.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args as Arguments, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use operator_api::{DEFAULT_NAMESPACE, LOAD_BALANCER_CLASS};

use super::{Unusable, selector};

/// Longest silence of a connection to the API server: watches end after 60 s of their own.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(
    name = "vipline-operator",
    version,
    about = "Kubernetes Services become VIPs on Vipline's LB nodes",
    long_about = "Watches Services, EndpointSlices and Nodes, gives LoadBalancer Services their addresses from AddressPools, and \
                  writes for each a VipTable that Vipline's LB nodes program. A Service gets its address in its status once an \
                  LB node has it in its maps.\n\n\
                  `run` is the operator; the other commands talk to the API server and end.",
    after_help = "Exit codes: 0 success, 1 failure, 2 command line or kubeconfig cannot be used.\n\
                  The API server is found by --kubeconfig, $KUBECONFIG, ~/.kube/config or, in a pod, the ServiceAccount."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the operator until SIGTERM or Ctrl-C.
    #[command(
        long_about = "Runs the operator until SIGTERM or Ctrl-C: writes in flight are finished then, and the leader's Lease is \
                      given back. Any number of replicas may run; one writes, the others watch and take over within 15 seconds. \
                      A leader that cannot renew its Lease for 10 seconds stops writing and exits with 1, to be started again \
                      as a candidate.\n\n\
                      HTTP: /metrics (OpenMetrics), /healthz, /readyz (everything has been listed; a replica that does not \
                      lead is ready, too)."
    )]
    Run(RunArgs),
    /// What is known of each Service: addresses, pool, on how many LB nodes, and why not.
    Services(ListArgs),
    /// Pools: addresses, used and free, conflicts.
    Pools(ListArgs),
    /// BGP peers: of each LB node the session, what it announces, and what went wrong last.
    Peers(ListArgs),
    /// Announcements: what they select, by which ways, on how many LB nodes, for how many addresses.
    Announcements(ListArgs),
    /// Print the CustomResourceDefinitions as YAML.
    #[command(after_help = "Example: vipline-operator crds | kubectl apply --server-side -f -")]
    Crds,
    /// Undo what the operator did: finalizers, statuses, tables, claims. Deleting the namespace does not hang afterwards.
    #[command(
        long_about = "Undoes what the operator did, so that nothing waits for it any more:\n\
                      1. of each Service of ours: status.loadBalancer and conditions (not with --keep-addresses), the pool \
                      annotation and finalizers;\n\
                      2. all VipTables: LB nodes stop serving;\n\
                      3. all AddressClaims;\n\
                      4. NodeSets and the TunnelConfig.\n\n\
                      AddressPools, BgpPeers, Announcements, the Secrets and the CustomResourceDefinitions stay: they are not \
                      in the way of deleting the namespace, and a new installation goes on with them. It can be interrupted \
                      and run again.\n\n\
                      It refuses while an operator holds the leader's Lease: scale its Deployment to 0 first. It takes the Lease \
                      itself while it works.",
        after_help = "Example: kubectl -n vipline-system scale deployment vipline-operator --replicas=0\n         \
                      vipline-operator uninstall --yes\n         \
                      kubectl delete namespace vipline-system"
    )]
    Uninstall(UninstallArgs),
}

/// How the API server is found, and which namespace is ours.
#[derive(Clone, Debug, Arguments)]
pub(super) struct ApiArgs {
    /// Namespace of the operator and its objects.
    #[arg(long, short, value_name = "NAME", env = "POD_NAMESPACE", default_value = DEFAULT_NAMESPACE,
          value_parser = NonEmptyStringValueParser::new())]
    pub(super) namespace: String,
    /// Kubeconfig to use instead of the default ones.
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
}

impl ApiArgs {
    /// A client. Retries are ours: a second layer of them would multiply.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let mut config = self.config().await?;
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        Ok(Client::try_from(config).map_err(|error| Unusable(format!("this kubeconfig cannot be used: {error}")))?)
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        if let Some(file) = &self.kubeconfig {
            let unusable = |error: kube::config::KubeconfigError| Unusable(format!("{}: {error}", file.display()));
            let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
            return Ok(Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(unusable)?);
        }
        if self.context.is_some() {
            let unusable = |error| Unusable(format!("kubeconfig: {error}"));
            return Ok(Config::from_kubeconfig(&options).await.map_err(unusable)?);
        }
        let unusable = |error| Unusable(format!("no API server known: {error}; give --kubeconfig FILE"));
        Ok(Config::infer().await.map_err(unusable)?)
    }
}

/// Which Services are ours.
#[derive(Clone, Debug, Arguments)]
pub(super) struct ClassArgs {
    /// spec.loadBalancerClass of the Services that are ours.
    #[arg(long, value_name = "CLASS", default_value = LOAD_BALANCER_CLASS)]
    pub(super) class: String,
    /// Take Services without a class, too: the only load balancer of the cluster.
    #[arg(long)]
    pub(super) default_class: bool,
    /// Take Services without a class that have these labels: adoption one by one, beside another load balancer. As for kubectl:
    /// `team=web,tier in (a, b),!legacy`.
    #[arg(long, value_name = "LABELS", value_parser = selector::parse)]
    pub(super) service_selector: Option<LabelSelector>,
}

#[derive(Debug, Arguments)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) api: ApiArgs,
    #[command(flatten)]
    pub(super) class: ClassArgs,
    /// Where /metrics, /healthz and /readyz are.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8080", value_parser = listen)]
    pub(super) listen: SocketAddr,
    /// Compete for the leader's Lease; `false` only where nothing else can be running.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub(super) leader_elect: bool,
    /// Name of this replica in the Lease and in Events; default: the host's and random digits. No two may have the same.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(super) identity: Option<String>,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log: LogFormat,
}

/// `:8080` is `[::]:8080`.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.to_owned(),
    };
    full.parse()
        .map_err(|_| "an address with port (10.0.0.1:8080, [::1]:8080) or :PORT".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people; coloured on a terminal. The level is set by VIPLINE_LOG (default: info).
    Text,
    /// A JSON object a line.
    Json,
}

#[derive(Debug, Arguments)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) api: ApiArgs,
    #[command(flatten)]
    pub(super) class: ClassArgs,
    /// How to print.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people.
    Table,
    /// JSON for programs.
    Json,
}

#[derive(Debug, Arguments)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    pub(super) api: ApiArgs,
    #[command(flatten)]
    pub(super) class: ClassArgs,
    /// Leave addresses in the statuses of Services: nodes and DNS keep them, and another load balancer can take them over.
    #[arg(long)]
    pub(super) keep_addresses: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Go on although an operator holds the leader's Lease. It would make everything again: only for one that hangs.
    #[arg(long)]
    pub(super) force: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_port_alone_is_every_address() {
        assert_eq!(listen(":8080").unwrap(), "[::]:8080".parse().unwrap());
        assert_eq!(listen("127.0.0.1:1").unwrap(), "127.0.0.1:1".parse().unwrap());
        assert!(listen("8080").is_err());
    }
}
