//! What `--help` says: its text is in tests/it/goldens/help, and its examples can be typed.

use clap::{CommandFactory as _, Parser as _};
use dify_sls_backfill::cli::args::Cli;

use crate::harness::golden;
use crate::harness::tool::Tool;

/// The subcommands, `help` left out.
fn subcommands() -> Vec<String> {
    let cli = Cli::command();
    cli.get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

/// What a command says with `--help`; the whole tool says it without a name.
fn help(command: Option<&str>) -> String {
    let arguments = command.into_iter().chain(["--help"]);
    Tool::new(arguments).run().exits(0).stdout
}

#[test]
fn help_says_what_each_command_can_do() {
    golden::check("help/dify-sls-backfill.txt", &help(None));
    let commands = subcommands();
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        golden::check(&format!("help/{command}.txt"), &help(Some(&command)));
    }
}

#[test]
fn examples_can_be_typed() {
    for command in [None].into_iter().chain(subcommands().iter().map(|name| Some(name.as_str()))) {
        let help = help(command);
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_default();
        let lines: Vec<_> = examples.lines().map(str::trim).collect();
        let ours = lines.iter().filter(|line| line.starts_with("dify-sls-backfill "));
        let mut parsed = 0;
        for line in ours {
            let typed = line.split('#').next().unwrap_or_default();
            let typed = typed.split('|').next().unwrap_or_default();
            let result = Cli::try_parse_from(typed.split_whitespace());
            assert!(result.is_ok(), "{line}: {}", result.err().unwrap());
            parsed += 1;
        }
        assert!(parsed > 0, "{command:?} has no example");
    }
}

#[test]
fn every_flag_that_is_shown_has_a_text() {
    let cli = Cli::command();
    for command in cli.get_subcommands().chain([&cli]) {
        for flag in command.get_arguments().filter(|flag| !flag.is_hide_set()) {
            let name = format!("{} {}", command.get_name(), flag.get_id());
            assert!(flag.get_help().is_some(), "{name} says nothing");
        }
    }
}
