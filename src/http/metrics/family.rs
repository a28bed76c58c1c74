//! A metric as plain data, and the short ways to make one.

use std::time::Duration;

use prometheus_client::encoding::MetricEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

pub(super) type Labels = Vec<(&'static str, String)>;

/// One metric with all its samples.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) labels: Labels,
    pub(super) value: Value,
}

impl Sample {
    pub(super) fn encode(&self, kind: MetricType, metric: &mut MetricEncoder) -> Result<(), std::fmt::Error> {
        match (kind, self.value) {
            (MetricType::Counter, Value::Whole(count)) => {
                let exemplar: Option<&Exemplar<[(&str, &str); 0], f64>> = None;
                metric.encode_counter(&count, exemplar)
            }
            (_, Value::Whole(number)) => metric.encode_gauge(&number),
            (_, Value::Signed(number)) => metric.encode_gauge(&number),
            (_, Value::Real(number)) => metric.encode_gauge(&number),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Whole(u64),
    Signed(i64),
    Real(f64),
}

pub(super) fn family(
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, Value)>,
) -> Family {
    let samples = samples
        .into_iter()
        .map(|(labels, value)| Sample { labels, value })
        .collect();
    Family {
        name,
        help,
        kind,
        samples,
    }
}

pub(super) fn gauges(name: &'static str, help: &'static str, samples: Vec<(Labels, Value)>) -> Family {
    family(name, help, MetricType::Gauge, samples)
}

pub(super) fn number(name: &'static str, help: &'static str, value: Option<u64>) -> Family {
    let sample = value.map(|value| (Vec::new(), Value::Whole(value)));
    gauges(name, help, sample.into_iter().collect())
}

pub(super) fn flag(name: &'static str, help: &'static str, value: Option<bool>) -> Family {
    number(name, help, value.map(u64::from))
}

pub(super) fn seconds(name: &'static str, help: &'static str, milliseconds: Option<u64>) -> Family {
    let sample = milliseconds.map(|value| (Vec::new(), real(value)));
    gauges(name, help, sample.into_iter().collect())
}

pub(super) fn whole(flag: bool) -> Value {
    Value::Whole(flag.into())
}

pub(super) fn real(milliseconds: u64) -> Value {
    Value::Real(Duration::from_millis(milliseconds).as_secs_f64())
}
