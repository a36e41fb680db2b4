//! Ready settings for common programs, printed once with a new password.
//!
//! Pure text. Easy to get wrong: a password goes into a DSN, a shell and a PHP string; each has its
//! own rules of quoting, kept here, although generated passwords need none of them.

use super::arguments::Program;
use super::client::encoded;

/// What a snippet is made of.
#[derive(Clone, Debug)]
pub struct Access {
    /// The server's name.
    pub host: String,
    /// A port where TLS comes first.
    pub tls_port: Option<u16>,
    /// A port with STARTTLS.
    pub starttls_port: Option<u16>,
    /// The login.
    pub login: String,
    /// The password.
    pub password: String,
}

/// Every program, in the order of printing.
pub const ALL: [Program; 8] = [
    Program::Thunderbird,
    Program::Wordpress,
    Program::Prestashop,
    Program::Phpmailer,
    Program::Symfony,
    Program::Nodemailer,
    Program::Django,
    Program::Swaks,
];

/// The settings for one program, with a heading.
pub fn snippet(program: Program, access: &Access) -> String {
    let (title, text) = match program {
        Program::Thunderbird => ("Thunderbird: account settings, outgoing server", thunderbird(access)),
        Program::Wordpress => ("WordPress with WP Mail SMTP: wp-config.php", wordpress(access)),
        Program::Prestashop => ("PrestaShop: Advanced Parameters, E-mail, own SMTP parameters", prestashop(access)),
        Program::Phpmailer => ("PHPMailer", phpmailer(access)),
        Program::Symfony => ("Symfony: .env.local", symfony(access)),
        Program::Nodemailer => ("Nodemailer", nodemailer(access)),
        Program::Django => ("Django: settings.py", django(access)),
        Program::Swaks => ("swaks: a test from the shell", swaks(access)),
    };
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!("{title}\n{indented}")
}

impl Access {
    /// The port and whether TLS comes first on it; TLS first is preferred.
    fn door(&self) -> (u16, bool) {
        match (self.tls_port, self.starttls_port) {
            (Some(port), _) => (port, true),
            (None, Some(port)) => (port, false),
            (None, None) => (465, true),
        }
    }
}

fn thunderbird(access: &Access) -> String {
    let (port, tls_first) = access.door();
    format!(
        "Server name: {}\nPort: {port}\nConnection security: {}\nAuthentication method: Normal password\nUser name: {}\n\
         Password: {}",
        access.host,
        if tls_first { "SSL/TLS" } else { "STARTTLS" },
        access.login,
        access.password
    )
}

fn wordpress(access: &Access) -> String {
    let (port, tls_first) = access.door();
    format!(
        "define( 'WPMS_ON', true );\ndefine( 'WPMS_MAILER', 'smtp' );\ndefine( 'WPMS_SMTP_HOST', {} );\n\
         define( 'WPMS_SMTP_PORT', {port} );\ndefine( 'WPMS_SSL', '{}' );\ndefine( 'WPMS_SMTP_AUTH', true );\n\
         define( 'WPMS_SMTP_AUTOTLS', true );\ndefine( 'WPMS_SMTP_USER', {} );\ndefine( 'WPMS_SMTP_PASS', {} );",
        single_quoted(&access.host),
        if tls_first { "ssl" } else { "tls" },
        single_quoted(&access.login),
        single_quoted(&access.password)
    )
}

fn prestashop(access: &Access) -> String {
    let (port, tls_first) = access.door();
    format!(
        "SMTP server: {}\nSMTP username: {}\nSMTP password: {}\nEncryption: {}\nPort: {port}",
        access.host,
        access.login,
        access.password,
        if tls_first { "SSL" } else { "TLS" }
    )
}

fn phpmailer(access: &Access) -> String {
    let (port, tls_first) = access.door();
    format!(
        "$mail->isSMTP();\n$mail->Host = {};\n$mail->Port = {port};\n$mail->SMTPSecure = PHPMailer::{};\n\
         $mail->SMTPAuth = true;\n$mail->Username = {};\n$mail->Password = {};",
        single_quoted(&access.host),
        if tls_first { "ENCRYPTION_SMTPS" } else { "ENCRYPTION_STARTTLS" },
        single_quoted(&access.login),
        single_quoted(&access.password)
    )
}

fn symfony(access: &Access) -> String {
    let (port, tls_first) = access.door();
    let scheme = if tls_first { "smtps" } else { "smtp" };
    format!("MAILER_DSN={scheme}://{}:{}@{}:{port}", encoded(&access.login), encoded(&access.password), access.host)
}

fn nodemailer(access: &Access) -> String {
    let (port, tls_first) = access.door();
    let required = if tls_first { "" } else { "\n  requireTLS: true," };
    format!(
        "const transport = nodemailer.createTransport({{\n  host: {},\n  port: {port},\n  secure: {tls_first},{required}\n  \
         auth: {{ user: {}, pass: {} }},\n}});",
        single_quoted(&access.host),
        single_quoted(&access.login),
        single_quoted(&access.password)
    )
}

fn django(access: &Access) -> String {
    let (port, tls_first) = access.door();
    format!(
        "EMAIL_BACKEND = 'django.core.mail.backends.smtp.EmailBackend'\nEMAIL_HOST = {}\nEMAIL_PORT = {port}\n{} = True\n\
         EMAIL_HOST_USER = {}\nEMAIL_HOST_PASSWORD = {}",
        single_quoted(&access.host),
        if tls_first { "EMAIL_USE_SSL" } else { "EMAIL_USE_TLS" },
        single_quoted(&access.login),
        single_quoted(&access.password)
    )
}

fn swaks(access: &Access) -> String {
    let (port, tls_first) = access.door();
    format!(
        "swaks --server {}:{port} {} --auth PLAIN --auth-user {} --auth-password {} \\\n  \
         --from you@YOUR-DOMAIN --to you@elsewhere.example",
        access.host,
        if tls_first { "--tls-on-connect" } else { "--tls" },
        shell_quoted(&access.login),
        shell_quoted(&access.password)
    )
}

/// For PHP, JavaScript and Python alike: backslash and quote are escaped.
fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(tls_port: Option<u16>) -> Access {
        Access {
            host: "shop.example.com".into(),
            tls_port,
            starttls_port: Some(587),
            login: "shop-7k3m9q".into(),
            password: "p'a\\s@s".into(),
        }
    }

    #[test]
    fn every_program_is_told_server_port_login_and_password() {
        for program in ALL {
            for tls_port in [Some(465), None] {
                let text = snippet(program, &access(tls_port));
                for part in ["shop.example.com", "shop-7k3m9q", if tls_port.is_some() { "465" } else { "587" }] {
                    assert!(text.contains(part), "{part} in {text}");
                }
            }
        }
    }

    #[test]
    fn a_password_is_quoted_as_each_language_asks() {
        assert!(symfony(&access(Some(465))).contains("smtps://shop-7k3m9q:p%27a%5Cs%40s@shop.example.com:465"));
        assert!(phpmailer(&access(Some(465))).contains(r"'p\'a\\s@s'"));
        assert!(swaks(&access(None)).contains(r"'p'\''a\s@s'"));
    }

    #[test]
    fn without_a_tls_port_every_program_is_told_to_require_starttls() {
        let access = access(None);
        assert!(thunderbird(&access).contains("STARTTLS"));
        assert!(nodemailer(&access).contains("secure: false") && nodemailer(&access).contains("requireTLS: true"));
        assert!(django(&access).contains("EMAIL_USE_TLS = True"));
        assert!(wordpress(&access).contains("'WPMS_SSL', 'tls'"));
    }
}
