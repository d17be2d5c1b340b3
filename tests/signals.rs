//! Signals as a service manager sends them. A test binary of its own: the process keeps the handlers.

use std::process::Command;

use miroir::rt::{Signal, Signals};

#[tokio::test]
async fn signals_are_told_apart() {
    let mut signals = Signals::install().unwrap();
    for (name, expected) in [("-HUP", Signal::Reload), ("-TERM", Signal::Stop), ("-INT", Signal::Stop)] {
        let sent = Command::new("kill").args([name, &std::process::id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(signals.next().await, expected);
    }
}
