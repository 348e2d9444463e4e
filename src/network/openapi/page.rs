//! The reference for people: the document of the API as one page of HTML, without scripts and external files.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The page may use only its own style.
pub const SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The address of the node in the examples, as in the README.
const EXAMPLE_ADDRESS: &str = "127.0.0.1:21001";
const STYLE: &str = include_str!("page.css");
const METHODS: [&str; 5] = ["get", "head", "put", "delete", "post"];

/// The page for a document.
pub fn page_of(document: &Value) -> String {
    let info = &document["info"];
    let (title, version) = (escaped(text(&info["title"])), escaped(text(&info["version"])));
    let mut sections = String::new();
    let mut contents = String::new();
    for tag in list(&document["tags"]) {
        let name = text(&tag["name"]);
        let operations: Vec<_> = operations(document).filter(|operation| operation.has_tag(name)).collect();
        let _ = write!(contents, "<ul><li><strong>{}</strong></li>", escaped(name));
        let _ = write!(sections, "<section><h2>{}</h2>{}", escaped(name), prose(&tag["description"]));
        for operation in operations {
            contents += &operation.link();
            sections += &operation.html(document);
        }
        contents += "</ul>";
        sections += "</section>";
    }
    contents += r##"<ul><li><strong>More</strong></li><li><a href="#errors">Errors</a></li>
<li><a href="#bodies">Bodies</a></li></ul>"##;
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: the API</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{title} <small>{version}</small></h1>
{}
<p>Programs can read the same reference at <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>
</header>
<nav>{contents}</nav>
<main>
{sections}
<section id="errors"><h2>Errors</h2>{}</section>
<section id="bodies"><h2>Bodies</h2>{}</section>
</main>
</body>
</html>
"#,
        prose(&info["description"]),
        errors(document),
        schemas(document),
    )
}

/// A method and a path.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    described: &'a Value,
}

fn operations(document: &Value) -> impl Iterator<Item = Operation<'_>> {
    entries(&document["paths"]).flat_map(|(path, item)| {
        METHODS.into_iter().filter_map(move |method| Some(Operation { method, path, described: item.get(method)? }))
    })
}

impl Operation<'_> {
    fn has_tag(&self, name: &str) -> bool {
        list(&self.described["tags"]).any(|tag| text(tag) == name)
    }

    fn id(&self) -> &str {
        text(&self.described["operationId"])
    }

    fn heading(&self) -> String {
        let (method, path) = (self.method, escaped(self.path));
        format!(r#"<span class="method {method}">{}</span> <code>{path}</code>"#, method.to_uppercase())
    }

    fn link(&self) -> String {
        let (method, path) = (self.method, escaped(self.path));
        let label = format!(r#"<span class="method {method}">{}</span> {path}"#, method.to_uppercase());
        format!(r##"<li><a href="#{}">{label}</a></li>"##, self.id())
    }

    fn html(&self, document: &Value) -> String {
        let summary = inline(text(&self.described["summary"]));
        let mut html = format!(
            r#"<details open id="{}"><summary>{} {summary}</summary><div>{}<pre class="curl">{}</pre>"#,
            self.id(),
            self.heading(),
            prose(&self.described["description"]),
            escaped(&self.curl()),
        );
        let parameters = list(&self.described["parameters"]).map(parameter).collect::<String>();
        if !parameters.is_empty() {
            let _ = write!(html, "<h3>Parameters</h3><dl>{parameters}</dl>");
        }
        let body = &self.described["requestBody"];
        if body.is_object() {
            let _ = write!(html, "<h3>Body</h3>{}{}", prose(&body["description"]), content(&body["content"], false));
        }
        html += "<h3>Responses</h3>";
        for (status, response) in entries(&self.described["responses"]) {
            html += &match text(&response["$ref"]).rsplit_once('/') {
                Some((_, name)) => error_link(status, name, document),
                None => answer(status, response),
            };
        }
        html + "</div></details>"
    }

    /// The example as a shell command.
    fn curl(&self) -> String {
        let mut path = self.path.to_owned();
        let mut query = Vec::new();
        for parameter in list(&self.described["parameters"]) {
            let (name, example) = (text(&parameter["name"]), text(&parameter["example"]));
            match text(&parameter["in"]) {
                "path" => path = path.replace(&format!("{{{name}}}"), example),
                "query" if !example.is_empty() => query.push(format!("{name}={example}")),
                _ => {}
            }
        }
        let body = entries(&self.described["requestBody"]["content"]).next();
        let body = body.map(|(content_type, body)| match &body["example"] {
            Value::String(raw) if content_type != "application/json" => raw.clone(),
            example => json(example),
        });
        let flags = match (self.method, &body) {
            _ if self.id() == "watch" => "-N ",
            ("put", _) => "-X PUT ",
            ("delete", _) => "-X DELETE ",
            ("head", _) => "-I ",
            ("post", None) => "-X POST ",
            _ => "",
        };
        let url = match query.as_slice() {
            [] => format!("{EXAMPLE_ADDRESS}{path}"),
            query => format!("'{EXAMPLE_ADDRESS}{path}?{}'", query.join("&")),
        };
        let data = body.map(|body| format!(" -d '{}'", body.replace('\'', r"'\''"))).unwrap_or_default();
        format!("curl {flags}{url}{data}")
    }
}

fn parameter(parameter: &Value) -> String {
    let place = match text(&parameter["in"]) {
        "path" => "in the path",
        "header" => "header",
        _ if parameter["required"] == true => "required",
        _ => "optional",
    };
    format!(
        r#"<dt><code>{}</code> <span class="quiet">{place}; {}</span></dt><dd>{}</dd>"#,
        escaped(text(&parameter["name"])),
        type_of(&parameter["schema"]),
        inline(text(&parameter["description"])),
    )
}

fn answer(status: &str, response: &Value) -> String {
    let headers = entries(&response["headers"]).map(|(name, _)| format!("<code>{}</code>", escaped(name)));
    let headers: Vec<_> = headers.collect();
    let headers = match headers.as_slice() {
        [] => String::new(),
        headers => format!(r#"<p class="quiet">Headers: {}</p>"#, headers.join(" ")),
    };
    let description = inline(text(&response["description"]));
    let content = content(&response["content"], true);
    format!(
        "<details open><summary><strong>{status}</strong> {description}</summary><div>{content}{headers}</div></details>"
    )
}

/// An error response of an operation. Its body is described with all errors.
fn error_link(status: &str, name: &str, document: &Value) -> String {
    let response = &document["components"]["responses"][name];
    let description = inline(text(&response["description"]));
    format!(r##"<p><a href="#{name}"><strong>{status}</strong></a> {description} {}</p>"##, codes(response))
}

fn codes(response: &Value) -> String {
    let examples = entries(&response["content"]["application/json"]["examples"]);
    examples.map(|(code, _)| format!("<code>{}</code> ", escaped(code))).collect()
}

/// The types of a body, with its example.
fn content(content: &Value, with_example: bool) -> String {
    let kinds = entries(content).map(|(content_type, body)| {
        let mut html = format!("<p><code>{}</code>: {}</p>", escaped(content_type), type_of(&body["schema"]));
        match &body["example"] {
            Value::Null => {}
            _ if !with_example => {}
            Value::String(raw) => {
                let _ = write!(html, "<pre>{}</pre>", escaped(raw));
            }
            example => {
                let _ = write!(html, "<pre>{}</pre>", escaped(&json(example)));
            }
        }
        html
    });
    kinds.collect()
}

fn errors(document: &Value) -> String {
    let responses = entries(&document["components"]["responses"]).map(|(name, response)| {
        let shape = if name.starts_with("v1-") { "routes under /v1" } else { "other routes" };
        let status = name.rsplit('-').next().unwrap_or_default();
        let mut html = format!(
            r#"<details id="{name}"><summary><strong>{status}</strong> on {shape}: {}</summary><div>"#,
            inline(text(&response["description"])),
        );
        for (_, example) in entries(&response["content"]["application/json"]["examples"]) {
            let _ = write!(html, "<pre>{}</pre>", escaped(&json(&example["value"])));
        }
        html + "</div></details>"
    });
    responses.collect()
}

fn schemas(document: &Value) -> String {
    let schemas = entries(&document["components"]["schemas"]).map(|(name, schema)| {
        format!(
            r#"<div class="schema" id="body-{}"><h3>{}</h3>{}{}</div>"#,
            escaped(name),
            escaped(name),
            prose(&schema["description"]),
            shape(schema),
        )
    });
    schemas.collect()
}

/// The fields of an object, or the variants of a schema.
fn shape(schema: &Value) -> String {
    if schema["properties"].is_object() {
        let required: Vec<_> = list(&schema["required"]).map(text).collect();
        let fields = entries(&schema["properties"]).map(|(name, field)| {
            let optional = if required.contains(&name) { "" } else { "; optional" };
            format!(
                r#"<dt><code>{}</code> <span class="quiet">{}{optional}</span></dt><dd>{}</dd>"#,
                escaped(name),
                type_of(field),
                inline(text(&field["description"])),
            )
        });
        return format!("<dl>{}</dl>", fields.collect::<String>());
    }
    let parts = ["oneOf", "allOf"].into_iter().find(|name| schema[*name].is_array());
    match parts {
        Some(name) => list(&schema[name]).map(|part| format!("<div>{}</div>", shape(part))).collect(),
        None => format!("<p>{}</p>", type_of(schema)),
    }
}

/// The type of a value, in a few words.
fn type_of(schema: &Value) -> String {
    if let Some((_, name)) = text(&schema["$ref"]).rsplit_once('/') {
        return format!(r##"<a href="#body-{}">{}</a>"##, escaped(name), escaped(name));
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().map(|word| match text(word) {
            "" => "nothing".to_owned(),
            word => format!("<code>{}</code>", escaped(word)),
        });
        return words.collect::<Vec<_>>().join(" or ");
    }
    if schema["oneOf"].is_array() {
        return list(&schema["oneOf"]).map(type_of).collect::<Vec<_>>().join(" or ");
    }
    let names = match &schema["type"] {
        Value::Array(names) => names.iter().map(text).collect(),
        name => vec![text(name)],
    };
    let names: Vec<_> = names.into_iter().map(|name| type_name(name, schema)).collect();
    names.join(" or ") + &bounds(schema)
}

fn type_name(name: &str, schema: &Value) -> String {
    let each = || list(&schema["prefixItems"]).map(type_of).collect::<Vec<_>>();
    match name {
        "array" if schema["prefixItems"].is_array() => format!("[{}]", each().join(", ")),
        "array" => format!("list of {}", type_of(&schema["items"])),
        "integer" => "integer".to_owned(),
        "boolean" => "true or false".to_owned(),
        "string" if schema["format"] == "binary" => "bytes".to_owned(),
        "string" => "text".to_owned(),
        other => escaped(other),
    }
}

/// Patterns are omitted: the descriptions say them in words.
fn bounds(schema: &Value) -> String {
    let number = |name: &str| schema[name].as_u64();
    let range = |least: Option<u64>, most: Option<u64>| match (least, most) {
        (None | Some(0), None) => None,
        (Some(least), None) => Some(format!("from {least}")),
        (least, Some(most)) => Some(format!("{} to {most}", least.unwrap_or(0))),
    };
    let mut bounds = String::new();
    if let Some(range) = range(number("minimum"), number("maximum")) {
        let _ = write!(bounds, ", {range}");
    }
    if let Some(range) = range(number("minLength"), number("maxLength")) {
        let _ = write!(bounds, " of {range} characters");
    }
    if let Some(most) = number("maxItems") {
        let _ = write!(bounds, ", at most {most}");
    }
    bounds
}

/// Text in paragraphs.
fn prose(value: &Value) -> String {
    let paragraphs = text(value).split("\n\n").filter(|paragraph| !paragraph.is_empty());
    paragraphs.map(|paragraph| format!("<p>{}</p>", inline(paragraph))).collect()
}

/// Text in which the words between backticks are code.
fn inline(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(number, part)| match number % 2 {
        0 => escaped(part),
        _ => format!("<code>{}</code>", escaped(part)),
    });
    parts.collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// On one line if it is short.
fn json(value: &Value) -> String {
    let line = value.to_string();
    if line.len() <= 100 { line } else { format!("{value:#}") }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(name, value)| (name.as_str(), value))
}
