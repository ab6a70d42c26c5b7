//! `uninstall`: undoes what the operator did.
//!
//! Never touches a Service that has nothing of ours, never the address of one of another class, and never deletes what people
//! made: pools, BgpPeers, Announcements.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Service};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use operator_api::{
    ANNOTATION_ALLOCATED_FROM, AddressClaim, FIELD_MANAGER, FINALIZER_EXTERNAL_IPS, LEADER_LEASE, NodeSet,
    TunnelConfig, VipTable,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    Unusable,
    args::UninstallArgs,
    cluster::{self, list},
};
use crate::{
    ServiceKey,
    index::{Index, Kind, Wanted, marks},
    ipam::key_of,
    run::{
        lead::Leadership,
        lease::{Candidate, LEASE_DURATION, RETRY, holder},
    },
};

/// Requests at a time.
const AT_A_TIME: usize = 16;
/// Attempts for one object: somebody else may write it at the same time.
const ATTEMPTS: u32 = 5;
/// Progress is said so often.
const PROGRESS: Duration = Duration::from_secs(2);

/// `vipline-operator uninstall`.
pub(super) async fn run(args: &UninstallArgs) -> anyhow::Result<()> {
    let client = args.api.client().await?;
    if !args.force {
        refuse_while_held(&client, &args.api.namespace).await?;
    }
    let index = cluster::read(&client, &args.api, &args.class).await?;
    let services: Vec<ServiceKey> = index.services().filter(|key| is_ours(&index, key)).cloned().collect();
    confirm(args, services.len())?;

    let identity = format!("uninstall_{:08x}", fastrand::u32(..));
    let mut candidate = Candidate::new(client.clone(), &args.api.namespace, LEADER_LEASE, &identity);
    let leadership = Leadership::default();
    if args.force {
        return undo(&client, args, &index, services).await;
    }
    // An operator that starts now stays a candidate.
    leadership.acquire(&mut candidate).await;
    let end = tokio::select! {
        end = undo(&client, args, &index, services) => end,
        () = leadership.keep(&mut candidate) => {
            Err(anyhow::anyhow!("an operator has taken the leader's Lease: stop it and run this again"))
        }
    };
    // The namespace may be going.
    drop(candidate.release().await);
    end
}

/// Waits for a sign of life of whoever holds the Lease; none for its whole duration means that it is dead, whatever clocks say.
async fn refuse_while_held(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    let start = Instant::now();
    let mut first: Option<Lease> = None;
    loop {
        let Some(lease) = leases.get_opt(LEADER_LEASE).await? else {
            return Ok(());
        };
        let Some(name) = holder(&lease) else {
            return Ok(());
        };
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        if let Some(first) = &first
            && version(first) != version(&lease)
        {
            return Err(Unusable(format!(
                "the operator {name} is running and would make everything again: \
                 `kubectl -n {namespace} scale deployment vipline-operator --replicas=0`, or --force"
            ))
            .into());
        }
        if start.elapsed() > LEASE_DURATION {
            return Ok(());
        }
        if first.is_none() {
            say(format_args!(
                "{name} holds the leader's Lease: looking whether it lives ({} s at most)",
                LEASE_DURATION.as_secs()
            ));
            first = Some(lease);
        }
        sleep(RETRY / 2).await;
    }
}

/// A Service that is served or has something of ours on it.
fn is_ours(index: &Index, key: &ServiceKey) -> bool {
    let Some(service) = index.service(key) else {
        return false;
    };
    let annotated = service.annotations().contains_key(ANNOTATION_ALLOCATED_FROM);
    let kept = service
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == FINALIZER_EXTERNAL_IPS);
    // Annotation and finalizer are those of any installation.
    let marked = (annotated || kept) && !index.claims().is_of_others(key);
    marked || index.table(key).is_some() || index.wanted(key) != Wanted::Foreign
}

fn confirm(args: &UninstallArgs, services: usize) -> anyhow::Result<()> {
    let addresses = if args.keep_addresses {
        "keep their addresses in their statuses"
    } else {
        "lose their addresses"
    };
    say(format_args!(
        "{services} Services of ours {addresses} and get rid of our finalizers; all VipTables (LB nodes stop serving), \
         AddressClaims, NodeSets and the TunnelConfig of the installation in namespace {} are deleted. Pools, BgpPeers, Announcements and the seed stay.",
        args.api.namespace
    ));
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Unusable("nobody to ask: give --yes".to_owned()).into());
    }
    write!(io::stderr(), "Go on? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes") {
        Ok(())
    } else {
        Err(Unusable("nothing was done".to_owned()).into())
    }
}

async fn undo(client: &Client, args: &UninstallArgs, index: &Index, services: Vec<ServiceKey>) -> anyhow::Result<()> {
    let namespace = &args.api.namespace;
    let released: BTreeSet<ServiceKey> = services.iter().cloned().collect();
    let mut progress = Progress::new("Services", services.len());
    let mut releases = stream::iter(services)
        .map(|key| release(client.clone(), key, args))
        .buffer_unordered(AT_A_TIME);
    while releases.try_next().await?.is_some() {
        progress.step();
    }
    progress.end();
    let own = || client.clone();
    delete_all(
        Api::<VipTable>::namespaced(own(), namespace),
        Kind::Table,
        "VipTables",
        |_| true,
    )
    .await?;
    let is_ours = |claim: &AddressClaim| match &claim.spec.installation {
        Some(installation) => *installation == operator_api::installation(namespace),
        // It does not say: ours, if nobody else can have it.
        None => claim.spec.holders.iter().all(|holder| {
            let key = key_of(&holder.service);
            released.contains(&key) || index.service(&key).is_none()
        }),
    };
    delete_all(Api::<AddressClaim>::all(own()), Kind::Claim, "AddressClaims", is_ours).await?;
    delete_all(
        Api::<NodeSet>::namespaced(own(), namespace),
        Kind::NodeSet,
        "NodeSets",
        |_| true,
    )
    .await?;
    let tunnels = Api::<TunnelConfig>::namespaced(own(), namespace);
    delete_all(tunnels, Kind::Tunnel, "TunnelConfigs", |_| true).await?;
    say(format_args!(
        "done; left are AddressPools, the seed's Secret and the definitions. To remove them, too: kubectl delete namespace \
         {namespace}; vipline-operator crds | kubectl delete -f -"
    ));
    Ok(())
}

/// Takes what is ours out of a Service.
async fn release(client: Client, key: ServiceKey, args: &UninstallArgs) -> anyhow::Result<()> {
    let services = Api::<Service>::namespaced(client, &key.namespace);
    for _ in 0..ATTEMPTS {
        let Some(service) = services.get_opt(&key.name).await? else {
            return Ok(());
        };
        let other_class = marks::is_of_other_class(&service, &args.class.class);
        match release_once(&services, service, other_class, args.keep_addresses).await {
            Ok(()) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 429 | 500..) => {
                sleep(Duration::from_millis(200).mul_f64(1.0 + fastrand::f64())).await;
            }
            Err(error) => return Err(anyhow::Error::new(error).context(format!("Service {key}"))),
        }
    }
    anyhow::bail!("Service {key}: somebody else writes it all the time, or the API server is busy; run this again")
}

async fn release_once(
    services: &Api<Service>,
    service: Service,
    other_class: bool,
    keep_addresses: bool,
) -> Result<(), kube::Error> {
    let name = service.name_any();
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let others = marks::conditions_of_others(&service, other_class);
    let finalizers = marks::finalizers_of_others(&service, other_class);
    let annotated = marks::is_annotated(&service);
    let status = service.status.clone().unwrap_or_default();
    let has_ours = status.conditions.unwrap_or_default() != others;
    let has_address = status.load_balancer.is_some_and(|balancer| balancer.ingress.is_some());
    let clears = has_address && !keep_addresses && !other_class;
    let mut version = service.metadata.resource_version.clone();
    if clears || has_ours {
        let others = if others.is_empty() { None } else { Some(others) };
        let mut body = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": others}});
        if clears {
            body["status"]["loadBalancer"] = json!({"ingress": null});
        }
        let answer = services.patch_status(&name, &parameters, &Patch::Merge(body)).await?;
        version = answer.metadata.resource_version;
    }
    if annotated || finalizers != service.finalizers() {
        let body = json!({"metadata": {
            "resourceVersion": version,
            "finalizers": finalizers,
            "annotations": {ANNOTATION_ALLOCATED_FROM: null},
        }});
        services.patch(&name, &parameters, &Patch::Merge(body)).await?;
    }
    Ok(())
}

/// Deletes all objects of a kind that are ours.
async fn delete_all<K>(api: Api<K>, kind: Kind, word: &'static str, is_ours: impl Fn(&K) -> bool) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned,
{
    let names: Vec<String> = match list(api.clone(), kind, |object| object).await {
        Ok(objects) => objects
            .iter()
            .filter(|object| is_ours(object))
            .map(K::name_any)
            .collect(),
        // Its definition has gone already, and all objects with it.
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut progress = Progress::new(word, names.len());
    let mut deleted = stream::iter(names)
        .map(|name| {
            let api = api.clone();
            async move {
                for _ in 0..ATTEMPTS {
                    match api.delete(&name, &DeleteParams::default()).await {
                        Ok(_) => return Ok(()),
                        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                        Err(kube::Error::Api(status)) if matches!(status.code, 409 | 429 | 500..) => {
                            sleep(Duration::from_millis(200).mul_f64(1.0 + fastrand::f64())).await;
                        }
                        Err(error) => return Err(anyhow::Error::new(error).context(format!("{word} {name}"))),
                    }
                }
                anyhow::bail!("{word} {name}: not deleted in {ATTEMPTS} attempts; run this again")
            }
        })
        .buffer_unordered(AT_A_TIME);
    while deleted.try_next().await?.is_some() {
        progress.step();
    }
    progress.end();
    Ok(())
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let error = cause.downcast_ref::<kube::Error>();
        error.is_some_and(|error| matches!(error, kube::Error::Api(status) if status.code == 404))
    })
}

/// Says how far it is, now and then.
struct Progress {
    word: &'static str,
    done: usize,
    all: usize,
    said: Instant,
}

impl Progress {
    fn new(word: &'static str, all: usize) -> Self {
        Self {
            word,
            done: 0,
            all,
            said: Instant::now(),
        }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.said.elapsed() > PROGRESS && self.done < self.all {
            self.said = Instant::now();
            say(format_args!("{} of {} {}", self.done, self.all, self.word));
        }
    }

    fn end(&self) {
        say(format_args!("{} {}", self.done, self.word));
    }
}

/// To standard error: standard output is for data. A closed one leaves nowhere to say it.
fn say(words: fmt::Arguments<'_>) {
    drop(writeln!(io::stderr(), "{words}"));
}
