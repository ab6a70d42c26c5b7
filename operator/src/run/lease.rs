//! Leader election by a Lease.
//!
//! Never believes another machine's clock: a holder is dead when its Lease has not *changed* for the Lease's duration, measured on
//! the own monotonic clock since the change was seen, as client-go does. `kube-leader-election` judges by `renewTime` and wants an
//! earlier kube.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, timeout};

/// How long a Lease lasts without a renewal.
pub(super) const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops.
pub(super) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// Longest a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One candidate.
#[derive(Debug)]
pub(super) struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// The Lease as last seen, and when it was first seen so.
    seen: Option<(Lease, Instant)>,
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The Lease is ours, counted from this instant (before the request went out).
    Held(Instant),
    /// Somebody else has it.
    HeldBy(String),
}

impl Candidate {
    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
        }
    }

    /// Takes or renews the Lease if it can be had.
    pub(super) async fn attempt(&mut self) -> Result<Attempt, kube::Error> {
        // The leader writes over what it wrote; only a conflict makes it read.
        if let Some((lease, _)) = &self.seen
            && holder(lease) == Some(&self.identity)
        {
            let start = Instant::now();
            match self.write(lease.clone()).await {
                Ok(()) => return Ok(Attempt::Held(start)),
                Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let start = Instant::now();
        let Some(lease) = limited(self.leases.get_opt(&self.name)).await? else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: None,
            };
            return self.take(fresh, start).await;
        };
        let now = Instant::now();
        let unchanged = self.seen.as_ref().filter(|(seen, _)| {
            seen.metadata.uid == lease.metadata.uid && seen.metadata.resource_version == lease.metadata.resource_version
        });
        let since = unchanged.map_or(now, |(_, since)| *since);
        self.seen = Some((lease.clone(), since));
        match holder(&lease) {
            Some(other) if *other != self.identity && now < since + duration(&lease) => {
                Ok(Attempt::HeldBy(other.clone()))
            }
            Some(_) | None => self.take(lease, start).await,
        }
    }

    /// Gives the Lease back, if it is ours: the next leader need not wait.
    pub(super) async fn release(&mut self) -> Result<(), kube::Error> {
        let Some((mut lease, _)) = self.seen.take() else {
            return Ok(());
        };
        if holder(&lease) != Some(&self.identity) {
            return Ok(());
        }
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        limited(self.leases.replace(&self.name, &PostParams::default(), &lease)).await?;
        Ok(())
    }

    async fn take(&mut self, lease: Lease, start: Instant) -> Result<Attempt, kube::Error> {
        match self.write(lease).await {
            Ok(()) => Ok(Attempt::Held(start)),
            // Somebody was faster; the next attempt sees who.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Attempt::HeldBy("another candidate".to_owned())),
            Err(error) => Err(error),
        }
    }

    async fn write(&mut self, mut lease: Lease) -> Result<(), kube::Error> {
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            spec.lease_transitions = Some(match spec.holder_identity {
                Some(_) => spec.lease_transitions.unwrap_or(0).saturating_add(1),
                None => 0,
            });
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(now.clone());
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
        lease.metadata.managed_fields = None;
        let parameters = PostParams::default();
        let written = if lease.metadata.resource_version.is_some() {
            limited(self.leases.replace(&self.name, &parameters, &lease)).await?
        } else {
            limited(self.leases.create(&parameters, &lease)).await?
        };
        self.seen = Some((written, Instant::now()));
        Ok(())
    }
}

/// Who holds a Lease, if anybody.
pub(super) fn holder(lease: &Lease) -> Option<&String> {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_ref())
        .filter(|holder| !holder.is_empty())
}

fn duration(lease: &Lease) -> Duration {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(LEASE_DURATION, Duration::from_secs)
}

async fn limited<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}
