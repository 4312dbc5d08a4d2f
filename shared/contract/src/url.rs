/// A URL for logs and errors: the credentials before the last `@` are replaced, and so are the parameters, which may
/// contain a password for PostgreSQL. NATS accepts addresses without a scheme, `host:port`. Of any other text that is no
/// URL, such as `host=h password=p` or a password alone, nothing is shown.
pub fn without_password(url: &str) -> String {
    let begin = url.find("://").map(|at| at + 3);
    let has_port = url.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if begin.is_none() && (!has_port || url.contains('=')) {
        return "***".to_owned();
    }
    let begin = begin.unwrap_or_default();
    let (start, place) = match url.rfind('@') {
        Some(at) if begin <= at => (format!("{}***", &url[..begin]), &url[at..]),
        Some(_) | None => (url[..begin].to_owned(), &url[begin..]),
    };
    match place.find(['?', '&', '#']) {
        Some(end) => format!("{start}{}?***", &place[..end]),
        None => format!("{start}{place}"),
    }
}

/// The file that the parameter `password_file` of a PostgreSQL URL names, and the URL without this parameter, which only
/// memfleet knows. The path ends at the next `&` and is taken as it is.
pub fn take_password_file(url: &str) -> (String, Option<String>) {
    const NAME: &str = "password_file=";
    let Some(at) = ['?', '&'].iter().find_map(|separator| url.find(&format!("{separator}{NAME}"))) else {
        return (url.to_owned(), None);
    };
    let (before, parameter) = url.split_at(at);
    let (separator, rest) = (&parameter[..1], &parameter[1 + NAME.len()..]);
    let (file, others) = rest.split_once('&').unwrap_or((rest, ""));
    let url = if others.is_empty() { before.to_owned() } else { format!("{before}{separator}{others}") };
    (url, Some(file.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_taken_out_of_a_url() {
        for (url, rest, file) in [
            ("postgres://w@h/d", "postgres://w@h/d", None),
            ("postgres://w@h/d?password_file=/p/w", "postgres://w@h/d", Some("/p/w")),
            ("postgres://w@h/d?password_file=/p/w&a=b", "postgres://w@h/d?a=b", Some("/p/w")),
            ("postgres://w@h/d?a=b&password_file=/p/w", "postgres://w@h/d?a=b", Some("/p/w")),
            ("postgres://w@h/d?a=b&password_file=/p/w&c=d", "postgres://w@h/d?a=b&c=d", Some("/p/w")),
            ("postgres://w:a?b@h/d?my_password_file=/p", "postgres://w:a?b@h/d?my_password_file=/p", None),
        ] {
            assert_eq!(take_password_file(url), (rest.to_owned(), file.map(str::to_owned)), "{url}");
        }
    }

    #[test]
    fn passwords_are_hidden() {
        for (url, shown) in [
            ("postgres://u:secret@h:5432/d", "postgres://***@h:5432/d"),
            ("nats://h:4222", "nats://h:4222"),
            ("nats://u:secret@h:4222,nats://u:secret@i:4222", "nats://***@i:4222"),
            ("u:secret@h:4222", "***@h:4222"),
            ("h:4222", "h:4222"),
            ("postgres://h/d?user=u&password=secret", "postgres://h/d?***"),
            ("postgres://u:a?b@h/d", "postgres://***@h/d"),
            ("postgres://h/d?user=u@x&password=secret", "postgres://***@x?***"),
            ("http://h:6334/#secret", "http://h:6334/?***"),
            ("host=h user=u password=secret", "***"),
            ("password=secret@x host=h", "***"),
            ("secret", "***"),
            ("u:48151623", "***"),
            ("", "***"),
        ] {
            assert_eq!(without_password(url), shown, "{url}");
        }
    }
}
