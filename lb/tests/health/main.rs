//! The health driver over loopback: real sockets, real servers, what is made of every way to fail. Needs no rights.

mod server;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb::health::HealthDriver;
use lb_core::{
    desired::{Backend, BackendId, BackendSet, Desired, Member, Protocol, Vip, VipKey},
    health::{Check, Checks, Health, HttpProbe, Probe, State, Statuses, Timing},
};
use server::{Answer, Server};

const PATIENCE: Duration = Duration::from_secs(20);
const TIMING: Timing = Timing {
    interval_ms: 100,
    timeout_ms: 100,
    rise: 1,
    fall: 2,
    damping_ms: 300,
    dead_after_ms: 1000,
    startup_ms: 0,
};

/// One VIP with one backend per address, all asked the same.
fn desired(addresses: &[IpAddr], probe: Probe, timing: Timing) -> (Desired, Arc<Checks>) {
    let id = |at: usize| BackendId(format!("backend-{at}").into());
    let set = BackendSet {
        members: (0..addresses.len())
            .map(|at| Member {
                backend: id(at),
                weight: 1,
            })
            .collect(),
        table_slots: None,
    };
    let checks = Arc::new(Checks::new([Check {
        probe,
        timing,
        needs_proof: false,
    }]));
    let key = VipKey {
        address: [203, 0, 113, 1].into(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let vip = Vip {
        checks: Some(Arc::clone(&checks)),
        ..Vip::new(Arc::new(set))
    };
    let backend = |(at, address): (usize, &IpAddr)| (id(at), Backend { address: *address });
    let desired = Desired {
        vips: [(key, vip)].into(),
        backends: addresses.iter().enumerate().map(backend).collect(),
        ..Desired::default()
    };
    (desired, checks)
}

fn http(port: u16) -> HttpProbe {
    HttpProbe {
        port,
        tls: false,
        host: None,
        path: "/healthz".into(),
        statuses: Statuses::OK,
        body: None,
    }
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Waits until `holds`; panics with `what` when it takes too long.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Probes one backend until there are a few outcomes; all that came of it, as `kind/outcome`.
fn outcomes(probe: Probe, timing: Timing) -> Vec<String> {
    let driver = HealthDriver::start().expect("a thread");
    driver.watch(&desired(&[HERE], probe, timing).0, []);
    let count = || driver.facts().probes.values().sum::<u64>();
    eventually("three probes", || count() >= 3);
    let outcomes = driver.facts().probes.into_keys();
    outcomes.map(|(kind, outcome)| format!("{kind}/{outcome}")).collect()
}

/// As [`outcomes`], slow enough for a machine that does much else: for servers that do answer.
fn answered(probe: Probe) -> Vec<String> {
    let patient = Timing {
        interval_ms: 5000,
        timeout_ms: 5000,
        ..TIMING
    };
    let driver = HealthDriver::start().expect("a thread");
    driver.watch(&desired(&[HERE], probe, patient).0, []);
    eventually("a probe", || !driver.facts().probes.is_empty());
    let outcomes = driver.facts().probes.into_keys();
    outcomes.map(|(kind, outcome)| format!("{kind}/{outcome}")).collect()
}

#[test]
fn every_way_to_answer_has_its_outcome() {
    let body = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let cases = [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
            None,
            "success",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nwhatever".to_owned(), None, "success"),
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned(),
            None,
            "status",
        ),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n".to_owned(), None, "status"),
        (body("all is ready"), Some("ready"), "success"),
        (body("all is lost"), Some("ready"), "body"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nalre\r\n5\r\nady!!\r\n0\r\n\r\n".to_owned(),
            Some("already"),
            "success",
        ),
        // What is looked for lies beyond what is read, and a body without an end does not keep a probe busy.
        (
            format!("HTTP/1.1 200 OK\r\n\r\n{}ready", "x".repeat(70_000)),
            Some("ready"),
            "body",
        ),
        ("SSH-2.0-OpenSSH_9.9\r\n".to_owned(), None, "not_http"),
        (
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(40_000)),
            None,
            "not_http",
        ),
        (String::new(), None, "closed"),
        ("HTTP/1.1 200 O".to_owned(), None, "closed"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_owned(),
            Some("long"),
            "closed",
        ),
    ];
    for (answer, body, expected) in cases {
        let server = Server::start(Answer::Bytes(answer.clone().into_bytes()));
        let probe = HttpProbe {
            body: body.map(Into::into),
            ..http(server.port())
        };
        let shown: String = answer.chars().take(60).collect();
        assert_eq!(answered(Probe::Http(probe)), [format!("http/{expected}")], "{shown:?}");
    }
}

#[test]
fn the_request_is_what_the_configuration_says() {
    let server = Server::start(Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()));
    let probe = HttpProbe {
        path: "/ready?all=1".into(),
        host: Some("web.example:8443".into()),
        ..http(server.port())
    };
    assert_eq!(answered(Probe::Http(probe)), ["http/success"]);
    let asked = server.asked();
    assert!(asked.starts_with("GET /ready?all=1 HTTP/1.1\r\n"), "{asked}");
    for field in [
        "host: web.example:8443\r\n",
        "connection: close\r\n",
        "user-agent: vipline-health/",
    ] {
        assert!(asked.to_ascii_lowercase().contains(field), "no {field:?} in {asked}");
    }
    let server = Server::start(Answer::Bytes(Vec::new()));
    let _ = answered(Probe::Http(http(server.port())));
    let host = format!("host: 127.0.0.1:{}\r\n", server.port());
    assert!(
        server.asked().to_ascii_lowercase().contains(&host),
        "{}",
        server.asked()
    );
}

#[test]
fn who_listens_and_who_does_not() {
    let server = Server::start(Answer::Never);
    let (port, closed) = (server.port(), server::closed_port());
    assert_eq!(answered(Probe::Tcp { port }), ["tcp/success"]);
    assert_eq!(answered(Probe::Tcp { port: closed }), ["tcp/refused"]);
    assert_eq!(answered(Probe::Http(http(closed))), ["http/refused"]);
    assert_eq!(outcomes(Probe::Http(http(port)), TIMING), ["http/no_answer"]);
}

#[test]
fn tls_is_spoken_and_no_certificate_verified() {
    // Self-signed, for another name, and expired.
    let server = Server::start(Answer::Tls(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready".to_vec(),
    ));
    let probe = |tls, port, body: &str| {
        Probe::Http(HttpProbe {
            tls,
            host: Some("web.example".into()),
            body: Some(body.into()),
            ..http(port)
        })
    };
    assert_eq!(answered(probe(true, server.port(), "ready")), ["https/success"]);
    assert_eq!(answered(probe(true, server.port(), "other")), ["https/body"]);
    let plain = Server::start(Answer::Bytes(b"HTTP/1.1 200 OK\r\n\r\nready".to_vec()));
    assert_eq!(answered(probe(true, plain.port(), "ready")), ["https/tls"]);
}

#[test]
fn a_server_that_dies_is_noticed_in_time_and_so_is_its_return() {
    let addresses: Vec<IpAddr> = (1..=3).map(|last| IpAddr::from([127, 0, 7, last])).collect();
    let port = server::closed_port();
    let serve = |address: &IpAddr| Server::start_at(Answer::Never, (*address, port).into());
    let mut servers: Vec<_> = addresses.iter().map(serve).collect();
    let driver = HealthDriver::start().expect("a thread");
    let (desired, checks) = desired(&addresses, Probe::Tcp { port }, TIMING);
    driver.watch(&desired, []);
    let states = || {
        let report = driver.report();
        report.values().map(|checks| checks[0].state).collect::<Vec<_>>()
    };
    eventually("all are healthy", || states() == [State::Healthy; 3]);
    assert!(driver.overlay().is_empty());

    drop(servers.remove(1));
    let took = eventually("the second is not", || {
        states() == [State::Healthy, State::Unhealthy, State::Healthy]
    });
    println!("unhealthy after {took:?}, with two probes a tenth of a second apart");
    let set = &desired.vips.values().next().expect("a VIP").set;
    let unfit = driver.overlay().unfit(set, Some(&checks)).expect("one that is out");
    assert_eq!(
        unfit.iter().map(|(_, health)| health).collect::<Vec<_>>(),
        [Health::Unhealthy]
    );

    servers.push(serve(&addresses[1]));
    eventually("it is back", || states() == [State::Healthy; 3]);
    assert!(driver.overlay().is_empty());

    // All of them: nobody is left.
    servers.clear();
    eventually("none is", || states() == [State::Unhealthy; 3]);
    assert!(driver.overlay().is_refused(set, &checks));
}

#[test]
fn a_thousand_backends_are_all_asked_at_no_more_than_the_rate() {
    let port = server::closed_port();
    let addresses: Vec<IpAddr> = (0..1000u32).map(|at| Ipv4Addr::from(0x7f0a_0000 + at).into()).collect();
    let driver = HealthDriver::start().expect("a thread");
    let timing = Timing {
        interval_ms: 250,
        timeout_ms: 250,
        ..TIMING
    };
    driver.watch(&desired(&addresses, Probe::Tcp { port }, timing).0, []);
    let start = Instant::now();
    // Whoever looks keeps the thread from its work: not all the time, and for longer than elsewhere.
    let eventually = |what: &str, holds: &dyn Fn() -> bool| {
        while !holds() {
            assert!(start.elapsed() < 3 * PATIENCE, "not within {:?}: {what}", 3 * PATIENCE);
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let asked = || {
        let report = driver.report();
        report.values().filter(|checks| checks[0].failures > 0).count()
    };
    let count = || driver.facts().probes.values().sum::<u64>();
    eventually("all are asked", &|| asked() == 1000);
    eventually("and again, and again", &|| count() >= 6000);
    let rate = count() as f64 / start.elapsed().as_secs_f64();
    println!(
        "{rate:.0} probes a second of 4,000 wanted; late by {:?}",
        driver.facts().sums.late
    );
    assert!(rate <= 2000.0, "{rate}");
    // What takes longer than its timeout on a machine that does much else is an outcome too; the other ones are not.
    let outcomes = driver.facts().probes;
    let known = [("tcp", "refused"), ("tcp", "no_connection")];
    assert!(outcomes.keys().all(|outcome| known.contains(outcome)), "{outcomes:?}");
    assert!(outcomes[&("tcp", "refused")] >= 5000, "{outcomes:?}");
}
