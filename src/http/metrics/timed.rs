//! [`Times`] as a histogram of Prometheus.

use std::fmt::{Debug, Error};
use std::ops::Deref;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::telemetry::count::Times;

/// Times that are told in seconds, whoever owns them.
#[derive(Clone, Debug)]
pub(super) struct Timed<T>(pub(super) T);

impl Default for Timed<Arc<Times>> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Deref<Target = Times> + Debug> EncodeMetric for Timed<T> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let told = self.0.told();
        encoder.encode_histogram::<NoLabelSet>(told.sum, told.count, &told.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<T> TypedMetric for Timed<T> {
    const TYPE: MetricType = MetricType::Histogram;
}
