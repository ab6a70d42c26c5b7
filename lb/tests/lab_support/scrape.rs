//! What a daemon shows to Prometheus.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lab::Node;

/// Where lab daemons show their metrics.
pub(crate) const METRICS: &str = "127.0.0.1:9430";

/// Values by series, as they stand in the text: `vipline_packets_total{fate="forward",reason="tx"}`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Asks from the node itself.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let answer = node.ns().run(|| {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lb\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        ensure!(body.ends_with("# EOF\n"), "cut short: {answer}");
        let mut values = BTreeMap::new();
        for line in body.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let twice = values.insert(series.to_owned(), value.parse()?);
            ensure!(twice.is_none(), "{series} stands twice:\n{body}");
        }
        Ok(Self(values))
    }

    /// One value.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// All of a metric together.
    pub(crate) fn sum(&self, metric: &str) -> f64 {
        let of_it = self
            .0
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(metric));
        of_it.map(|(_, value)| value).sum()
    }
}
