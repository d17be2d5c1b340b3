//! Signals as a service manager sends them. A test binary of its own: the process keeps the handlers.

use std::process::Command;

use miroir::rt::{Signal, Signals};

#[tokio::test]
async fn signals_are_told_apart() {
    let mut signals = Signals::install().unwrap();
    for (name, expected) in [("-HUP", Signal::Reload), ("-TERM", Signal::Stop), ("-INT", Signal::Stop)] {
        // The shell's own `kill`: not every machine has it as a program.
        let sent = Command::new("sh").args(["-c", &format!("kill {name} {}", std::process::id())]).status().unwrap();
        assert!(sent.success());
        assert_eq!(signals.next().await, expected);
    }
}
