//! One host of a topology: enters namespaces of its own and does what the test process says; with `reap`, the process
//! that removes what a test leaves when it is killed. Ends at the end of its standard input.

fn main() -> std::process::ExitCode {
    harness::worker::main()
}
