//! The binary: everything is in the library.

fn main() -> std::process::ExitCode {
    dify_sls_backfill::cli::main()
}
