//! Where it is measured: a namespace with the API server's listener, the operator and the LB node; a router beside it.
//!
//! Never a delay of its own: the API server is a double in this process, and all that the network does is loopback. What a real one
//! adds (etcd's fsync, admission, other clients) comes on top.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use apiserver::{ApiServer, Asked, Endpoint};
use lab::{End, Netns, Veth};

use super::process::{CACHE, Child};

/// The LB node's interface.
const INTERFACE: &str = "eth0";
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Dropped in this order: the processes first.
pub(crate) struct Site {
    pub(crate) operator: Option<Child>,
    pub(crate) lb: Option<Child>,
    pub(crate) server: ApiServer,
    _endpoint: Endpoint,
    pub(crate) ns: Netns,
    _router: Netns,
    directory: PathBuf,
    kubeconfig: PathBuf,
}

impl Site {
    /// With an API server and nothing else at work.
    pub(crate) fn build() -> Result<Self> {
        let (router, ns) = (Netns::new("router")?, Netns::new("lb-0")?);
        let end = |ns: &Netns, name: &str, mac, last| End {
            ns: ns.clone(),
            name: name.to_owned(),
            mac,
            v4: Some((Ipv4Addr::new(192, 0, 2, last), 24)),
            v6: None,
        };
        Veth::new(
            end(&router, "lb", ROUTER_MAC, 2),
            end(&ns, INTERFACE, [2, 0, 0, 0, 0, 1], 1),
            1_600,
            1,
        )?;
        // The next hop of all worker nodes, known from the beginning: what is measured is the control plane.
        ns.ip_batch(&format!(
            "neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev {INTERFACE} nud permanent\n\
             route add default via 192.0.2.2\n"
        ))?;
        let directory = std::env::temp_dir().join(format!("vipline-perf-control-{}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let server = ApiServer::start();
        let listener = ns.run(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))?;
        let endpoint = server.listen(listener);
        let kubeconfig = directory.join("kubeconfig");
        fs::write(&kubeconfig, endpoint.kubeconfig(None))?;
        let socket = directory.join("lb.sock");
        fs::write(
            directory.join("lb.yaml"),
            format!("interfaces: [{INTERFACE}]\ncontrol_socket: {}\n", socket.display()),
        )?;
        Ok(Self {
            operator: None,
            lb: None,
            server,
            _endpoint: endpoint,
            ns,
            _router: router,
            directory,
            kubeconfig,
        })
    }

    /// Starts the operator.
    pub(crate) fn start_operator(&mut self) -> Result<()> {
        self.operator = Some(Child::operator(&self.ns, &self.directory, &self.kubeconfig)?);
        Ok(())
    }

    /// Starts the LB node's daemon.
    pub(crate) fn start_lb(&mut self) -> Result<()> {
        self.lb = Some(Child::lb(&self.ns, &self.directory, &self.kubeconfig)?);
        Ok(())
    }

    /// Forgets what the LB node kept on disk of what it programmed.
    pub(crate) fn drop_cache(&self) -> Result<()> {
        match fs::remove_file(self.directory.join(CACHE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The maps of the LB node's program, once it has one.
    pub(crate) fn maps(&self) -> Result<Option<super::maps::Maps>> {
        super::maps::Maps::of(&self.ns, INTERFACE)
    }

    /// Fails when one of the two has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        for child in [&mut self.operator, &mut self.lb].into_iter().flatten() {
            child.check()?;
        }
        Ok(())
    }

    /// Writes over HTTP so far.
    pub(crate) fn written(&self) -> Written {
        Written(self.server.writes().all().into_iter().collect())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        (self.operator, self.lb) = (None, None);
        // What is left in a temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Numbers of writes, by what was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written(Vec<(Asked, u64)>);

impl Written {
    /// What has come since `before`: verb, resource with subresource, number.
    pub(crate) fn since(&self, before: &Self) -> Vec<(String, String, u64)> {
        let then = |asked: &Asked| {
            before
                .0
                .iter()
                .find(|(other, _)| other == asked)
                .map_or(0, |(_, count)| *count)
        };
        let rows = self.0.iter().map(|(asked, count)| {
            let resource = match asked.subresource.as_str() {
                "" => asked.resource.clone(),
                subresource => format!("{}/{subresource}", asked.resource),
            };
            (asked.verb.clone(), resource, count - then(asked))
        });
        rows.filter(|(_, _, count)| *count > 0).collect()
    }
}
