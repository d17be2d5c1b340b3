//! How many bytes may be on their way to a peer unconfirmed.
//!
//! While a link is cut everything that is sent stays unconfirmed, and after it the window of the usual control is two packets wide.
//! What is sent during the next cut fills that at once; then nothing new is sent, and a probe waits for a timer that doubles
//! until long after the link is whole again. Rule: so much as a few seconds of probes and gossip may always be sent. Must not know:
//! what is sent.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// The least window, in bytes. Members are near one another: a link of 100 Mbit/s takes it in 5 ms.
const LEAST: u64 = 64 << 10;

/// The usual control (CUBIC, RFC 9438), with a least window.
#[derive(Debug, Default)]
pub(super) struct Config;

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Window(Arc::new(CubicConfig::default()).build(now, mtu)))
    }
}

struct Window(Box<dyn Controller>);

impl Controller for Window {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.0.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.0.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.0.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.0.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window().max(LEAST)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.0.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self(self.0.clone_box()))
    }

    fn initial_window(&self) -> u64 {
        self.0.initial_window().max(LEAST)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_lost_some_seconds_of_probes_may_be_sent() {
        let now = Instant::now();
        let mut window = Arc::new(Config).build(now, 1_200);
        for _ in 0..20 {
            window.on_congestion_event(now, now, true, 1 << 20);
        }
        let usual = window.metrics().congestion_window;
        assert!(usual < 10_000 && window.window() == LEAST, "{usual}");
        assert_eq!(window.clone_box().window(), LEAST);
    }
}
