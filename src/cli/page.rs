//! `docs/cli.md`, written from the tree of sub-commands and compared with the file in a test.

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use clap::{Command, CommandFactory};

    use super::super::arguments::Arguments;

    const INTRODUCTION: &str = "# Command line\n\n\
        <!-- Generated from src/cli/arguments.rs; do not edit. POSTERN_BLESS=1 cargo test --lib cli::page writes it. -->\n\n\
        Commands about tenants, addresses, domains, accounts and mail are clients of the running daemon's socket.\n\
        The socket is for root, the daemon's own user, and members of the group named by `admin.group`.\n\
        `check`, `init`, `try`, `doctor`, `store`, `restore`, `backup verify` and `backup key` and `masterkey` work without the daemon; `store` and `masterkey` refuse while it runs.\n\n\
        `--json` prints what the daemon answered; what `list` commands print is `{\"rows\": [...], \"next\": ...}`.\n\
        Colours are shown on a terminal only, and never if `NO_COLOR` is set.\n\
        A tenant is named by its short name, a virtual IP by its address, its id or its EHLO name, an SMTP account by its login.\n\
        The tenant `@instance` owns the names of the instance's own notices.\n\n\
        | Exit code | Means |\n| --- | --- |\n| 0 | done |\n| 1 | failed; one line on standard error says why |\n\
        | 2 | wrong usage |\n| 65 | a backup is damaged, cut off, or no backup |\n| 69 | the daemon cannot be reached, or its socket is not open to you |\n\
        | 78 | the configuration, or what it points to, is wrong; or a newer release wrote the store or backup |\n\n\
        `serve` has four more meanings: 1 a disk, lock or port was not to be had; 70 a task without which nothing works has ended;\n\
        74 the store has stopped; 77 started as root. systemd starts it again after all but 77 and 78.\n";

    fn page() -> String {
        let mut command = Arguments::command();
        command.build();
        let mut page = INTRODUCTION.to_owned();
        describe(&mut page, &command, "postern");
        page
    }

    fn describe(page: &mut String, command: &Command, name: &str) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
            let name = format!("{name} {}", sub.get_name());
            let level = "#".repeat(name.split(' ').count().min(4));
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = write!(page, "\n{level} `{name}`\n\n{about}.\n");
            if sub.has_subcommands() {
                describe(page, sub, &name);
                continue;
            }
            let usage = sub.clone().render_usage().to_string();
            let _ = write!(page, "\n    {}\n", usage.trim_start_matches("Usage: ").trim());
            let mut rows = String::new();
            for argument in sub.get_arguments().filter(|argument| !argument.is_global_set()) {
                if matches!(argument.get_id().as_str(), "help" | "version") {
                    continue;
                }
                let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let words = argument.get_possible_values();
                let words: Vec<String> = words.iter().map(|word| format!("`{}`", word.get_name())).collect();
                let is_flag = matches!(argument.get_action(), clap::ArgAction::SetTrue);
                if !words.is_empty() && !is_flag {
                    let _ = write!(help, ": {}", words.join(", "));
                }
                let default: Vec<_> =
                    argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
                if !is_flag && default.iter().any(|value| !value.is_empty()) {
                    let _ = write!(help, " (default `{}`)", default.join(" "));
                }
                let _ = writeln!(rows, "- `{}`: {help}", argument.to_string().replace('|', "\\|"));
            }
            if !rows.is_empty() {
                let _ = write!(page, "\n{rows}");
            }
        }
    }

    #[test]
    fn the_page_in_the_docs_is_the_tree_of_commands() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
        if std::env::var_os("POSTERN_BLESS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == page(), "docs/cli.md is out of date: POSTERN_BLESS=1 cargo test --lib cli::page");
    }

    #[test]
    fn the_tree_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_refused_with_a_reason() {
        use clap::Parser;
        let refused = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap_err().to_string();
        assert!(refused("postern vip add 192.0.2.1 --ehlo a.example").contains("--tenant"));
        assert!(refused("postern vip add nonsense --ehlo a.example --shared").contains("invalid IP address"));
        assert!(
            refused("postern vip add 192.0.2.1 --ehlo a.example --shared --tenant x").contains("cannot be used with")
        );
        assert!(refused("postern tenant limits shop --hourly many").contains("a number of messages, or none"));
        assert!(refused("postern domain add shop -bad-").contains("unexpected argument"));
        assert!(refused("postern route add relay.example").contains("--all"));
    }
}
