//! What the process has of the operating system: signals as a service manager sends them, and the limit of open files. A test
//! binary of its own: the process keeps the handlers and the limit.

use std::process::Command;

use miroir::rt::{Signal, Signals, files};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

#[test]
fn as_many_files_may_be_open_as_the_system_allows() {
    let allowed = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: allowed }).unwrap();
    assert_eq!(files::raise_limit(), allowed.map_or(usize::MAX, |files| usize::try_from(files).unwrap()));
    assert_eq!(getrlimit(Resource::Nofile).current, allowed);
}
