//! A template's program, in which every expression that builds or walks a container is under a bound.
//!
//! The library counts instructions, bytes and visited items. Two things it does not count: how deep values nest, which is
//! how far printing, comparing and dropping them recurse; and that a list which holds another twice is walked twice, so that
//! sixty doublings make 2^60 visits. Both end here: what a template builds is weighed before it can be used, and a container
//! holds nothing but plain values.

use std::collections::BTreeMap;

use minijinja::machinery::{CodeGenerator, Instructions, Token, ast, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ObjectRepr, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use self_cell::self_cell;

use ast::{CallArg, Expr, Spanned, Stmt};

/// Operators, calls and accesses within one pair of marks; the most in a template of `shared/golden/chat` are 28. Each may be a
/// level of the syntax tree, which is walked recursively.
const MAX_LINKS: usize = 400;

/// `if`s within each other, with every `elif` counted as one.
const MAX_BRANCHES: usize = 200;

/// Lists and maps within each other; JSON as we read it goes to 128.
const MAX_DEPTH: usize = 200;

/// Values in a list or map, those of the lists and maps in it included: a conversation of 10,000 messages has 50,000.
const MAX_VALUES: u64 = 200_000;

/// Bytes of text in a list or map; twice what a template is given.
const MAX_TEXT: usize = 16 << 20;

/// Names of functions that no template can call: they are not identifiers.
const WEIGHED: &str = "weighed value";
const STORED: &str = "stored value";

/// Filters that compare or print what is within their input.
const DEEP_FILTERS: [&str; 14] = [
    "sort",
    "unique",
    "string",
    "join",
    "pprint",
    "groupby",
    "max",
    "min",
    "sum",
    "urlencode",
    "dictsort",
    "escape",
    "e",
    "format",
];

/// What is run.
pub(super) struct Code<'a> {
    pub(super) instructions: Instructions<'a>,
    pub(super) blocks: BTreeMap<&'a str, Instructions<'a>>,
}

self_cell! {
    /// A template's text and what was compiled from it.
    pub(super) struct Program {
        owner: String,
        #[covariant]
        dependent: Code,
    }
}

/// Compiles `source`.
///
/// # Errors
/// A syntax error, or an expression or a chain of branches that is too long.
pub(super) fn compile(source: String, syntax: &SyntaxConfig) -> Result<Program, Error> {
    measure(&source, syntax)?;
    Program::try_new(source, |source| {
        let tree = statement(&parse(source, super::template::NAME, syntax.clone())?);
        let mut generator = CodeGenerator::new(super::template::NAME, source);
        generator.compile_stmt(&tree);
        let (instructions, blocks) = generator.finish();
        Ok(Code { instructions, blocks })
    })
}

/// Adds what compiled templates call.
pub(super) fn add_bounds(environment: &mut Environment<'_>) {
    environment.add_function(WEIGHED, weighed);
    environment.add_function(STORED, stored);
}

fn refused(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Refuses what the parser would recurse into too deep.
fn measure(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut links, mut branches, mut word) = (0, Vec::new(), 0);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        word += 1;
        match token {
            Token::VariableStart | Token::BlockStart => (links, word) = (0, 0),
            Token::TemplateData(_) | Token::VariableEnd | Token::BlockEnd => {}
            Token::Comma | Token::Colon | Token::Assign => {}
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => {}
            Token::Ident("if") if word == 1 => branches.push(1),
            Token::Ident("elif") if word == 1 => {
                if let Some(last) = branches.last_mut() {
                    *last += 1;
                }
            }
            Token::Ident("endif") if word == 1 => drop(branches.pop()),
            Token::Ident("not" | "and" | "or" | "is" | "in" | "if" | "else") => links += 1,
            Token::Ident(_) => {}
            _ => links += 1,
        }
        let line = span.start_line;
        if links > MAX_LINKS {
            return Err(refused(format!("an expression of more than {MAX_LINKS} operators at line {line}")));
        }
        // Both ways to nest go on the same stack.
        if branches.iter().sum::<usize>() > MAX_BRANCHES {
            return Err(refused(format!("more than {MAX_BRANCHES} branches of one `if` at line {line}")));
        }
    }
    Ok(())
}

// ---- What a template's values may become ----

/// Whether a value is one of the containers that templates build; others (namespaces, loops, macros) may hold anything.
fn is_plain(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Plain => false,
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            let name = value.as_object().map_or("", |o| o.type_name());
            !(name.contains("Namespace") || name.contains("Loop") || name.contains("Macro"))
        }
        _ => true,
    }
}

/// Passes a value on if it may be built and walked. Lazy sequences become lists, so that none waits within another.
fn weighed(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::Iterable && is_plain(&value) {
        if value.len().is_some_and(|n| n as u64 > MAX_VALUES) {
            return Err(too_many());
        }
        let items: Vec<Value> = value.try_iter()?.take(MAX_VALUES as usize + 1).collect();
        return weighed(state, Value::from(items));
    }
    weigh(state, &value)?;
    Ok(value)
}

/// As [`weighed`], for what a namespace is to hold: the only place where values can come to hold themselves.
fn stored(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    if value.as_object().is_some() && !is_plain(&value) {
        return Err(refused("a namespace holds plain values, lists and maps"));
    }
    weighed(state, value)
}

fn too_many() -> Error {
    refused(format!("a list or map of more than {MAX_VALUES} values"))
}

/// What was met on a walk.
#[derive(Default)]
struct Weight {
    values: u64,
    text: usize,
}

/// Charges what a walk over `value` costs, and refuses what nests too deep or is too large.
pub(super) fn weigh(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let mut weight = Weight::default();
    if value.as_object().is_some() {
        walk(value, 0, &mut weight)?;
        // Two visits take about as long as an instruction, and so does the comparison of 1 KiB of text.
        state.consume_fuel(weight.values / 2 + weight.text as u64 / 1024)?;
    }
    Ok(())
}

fn walk(value: &Value, depth: usize, weight: &mut Weight) -> Result<(), Error> {
    weight.values += 1;
    weight.text += value.as_str().map_or(0, str::len);
    if weight.values > MAX_VALUES {
        return Err(too_many());
    }
    if weight.text > MAX_TEXT {
        return Err(refused(format!("a list or map with more than {} MiB of text", MAX_TEXT >> 20)));
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    if depth > 0 && !is_plain(value) {
        return Err(refused("lists, maps and namespaces hold plain values, lists and maps"));
    }
    if depth > MAX_DEPTH {
        return Err(refused(format!("lists and maps within each other, more than {MAX_DEPTH} deep")));
    }
    match object.repr() {
        ObjectRepr::Map => {
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                walk(&key, depth + 1, weight)?;
                walk(&item, depth + 1, weight)?;
            }
        }
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            for item in value.try_iter()? {
                walk(&item, depth + 1, weight)?;
            }
        }
        _ => {}
    }
    Ok(())
}

// ---- The tree, rebuilt with calls of the two functions ----

fn call<'a>(function: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    let callee = Expr::Var(Spanned::new(ast::Var { id: function }, span));
    Expr::Call(Spanned::new(ast::Call { expr: callee, args: vec![CallArg::Pos(expr)] }, span))
}

fn body<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(statement).collect()
}

fn statement<'a>(statement: &Stmt<'a>) -> Stmt<'a> {
    match statement {
        Stmt::Template(s) => Stmt::Template(again(s, |s| ast::Template { children: body(&s.children) })),
        // The outermost call stays in sight: `loop(...)` is an instruction of its own. What is printed is weighed then.
        Stmt::EmitExpr(s) => Stmt::EmitExpr(again(s, |s| ast::EmitExpr { expr: rebuilt(&s.expr) })),
        Stmt::EmitRaw(s) => Stmt::EmitRaw(again(s, |s| ast::EmitRaw { raw: s.raw })),
        Stmt::ForLoop(s) => Stmt::ForLoop(again(s, |s| ast::ForLoop {
            target: rebuilt(&s.target),
            iter: bounded(&s.iter),
            filter_expr: s.filter_expr.as_ref().map(bounded),
            recursive: s.recursive,
            body: body(&s.body),
            else_body: body(&s.else_body),
        })),
        Stmt::IfCond(s) => Stmt::IfCond(again(s, |s| ast::IfCond {
            expr: bounded(&s.expr),
            true_body: body(&s.true_body),
            false_body: body(&s.false_body),
        })),
        Stmt::WithBlock(s) => Stmt::WithBlock(again(s, |s| ast::WithBlock {
            assignments: s.assignments.iter().map(|(to, from)| (rebuilt(to), assigned(to, from))).collect(),
            body: body(&s.body),
        })),
        Stmt::Set(s) => Stmt::Set(again(s, |s| ast::Set {
            target: rebuilt(&s.target),
            expr: assigned(&s.target, &s.expr),
        })),
        Stmt::SetBlock(s) => Stmt::SetBlock(again(s, |s| ast::SetBlock {
            target: rebuilt(&s.target),
            filter: s.filter.as_ref().map(rebuilt),
            body: body(&s.body),
        })),
        Stmt::AutoEscape(s) => Stmt::AutoEscape(again(s, |s| ast::AutoEscape {
            enabled: bounded(&s.enabled),
            body: body(&s.body),
        })),
        Stmt::FilterBlock(s) => Stmt::FilterBlock(again(s, |s| ast::FilterBlock {
            filter: rebuilt(&s.filter),
            filter_span: s.filter_span,
            body: body(&s.body),
        })),
        Stmt::Macro(s) => Stmt::Macro(macro_again(s)),
        Stmt::CallBlock(s) => Stmt::CallBlock(again(s, |s| ast::CallBlock {
            call: again(&s.call, call_again),
            call_expr_span: s.call_expr_span,
            macro_decl: macro_again(&s.macro_decl),
        })),
        Stmt::Continue(s) => Stmt::Continue(again(s, |_| ast::Continue)),
        Stmt::Break(s) => Stmt::Break(again(s, |_| ast::Break)),
        Stmt::Do(s) => Stmt::Do(again(s, |s| ast::Do { call: again(&s.call, call_again) })),
    }
}

fn again<T, U>(node: &Spanned<T>, make: impl FnOnce(&T) -> U) -> Spanned<U> {
    Spanned::new(make(node), node.span())
}

fn macro_again<'a>(node: &Spanned<ast::Macro<'a>>) -> Spanned<ast::Macro<'a>> {
    again(node, |s| ast::Macro {
        name: s.name,
        args: s.args.iter().map(rebuilt).collect(),
        defaults: s.defaults.iter().map(bounded).collect(),
        body: body(&s.body),
    })
}

/// What is assigned to `target`.
fn assigned<'a>(target: &Expr<'a>, expr: &Expr<'a>) -> Expr<'a> {
    match target {
        Expr::GetAttr(_) => call(STORED, bounded(expr)),
        // Several targets, of which one may be an attribute: their values come from a container, which is plain.
        _ => bounded(expr),
    }
}

/// A text, a number or the like: nothing to walk.
fn is_constant(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Const(_) => true,
        Expr::UnaryOp(e) => is_constant(&e.expr),
        _ => false,
    }
}

/// The expression again; weighed if it builds a container.
fn bounded<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let is_builder = match expr {
        Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) | Expr::Slice(_) | Expr::Filter(_) | Expr::Call(_) => {
            !matches!(expr.as_const(), Some(v) if v.as_object().is_none())
        }
        Expr::BinOp(e) => {
            matches!(e.op, ast::BinOpKind::Add | ast::BinOpKind::Mul) && expr.as_const().is_none()
        }
        _ => false,
    };
    let again = rebuilt(expr);
    if is_builder { call(WEIGHED, again) } else { again }
}

/// The expression again, and weighed, as something that is about to be walked.
fn walked<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_constant(expr) { rebuilt(expr) } else { call(WEIGHED, rebuilt(expr)) }
}

fn rebuilt<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Var(e) => Expr::Var(again(e, |e| ast::Var { id: e.id })),
        Expr::Const(e) => Expr::Const(again(e, |e| ast::Const { value: e.value.clone() })),
        Expr::Slice(e) => Expr::Slice(again(e, |e| ast::Slice {
            expr: bounded(&e.expr),
            start: e.start.as_ref().map(bounded),
            stop: e.stop.as_ref().map(bounded),
            step: e.step.as_ref().map(bounded),
        })),
        Expr::UnaryOp(e) => Expr::UnaryOp(again(e, |e| ast::UnaryOp {
            op: match e.op {
                ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
            },
            expr: bounded(&e.expr),
        })),
        Expr::BinOp(e) => Expr::BinOp(again(e, |e| {
            use ast::BinOpKind::{Concat, Eq, Gt, Gte, In, Lt, Lte, Ne};
            // Beside a constant a comparison ends at once; a concatenation prints both sides.
            let walks = match e.op {
                Concat => true,
                Eq | Ne | Lt | Lte | Gt | Gte | In => !is_constant(&e.left) && !is_constant(&e.right),
                _ => false,
            };
            let side = |side: &Expr<'a>| if walks { walked(side) } else { bounded(side) };
            ast::BinOp { op: e.op, left: side(&e.left), right: side(&e.right) }
        })),
        Expr::Compare(e) => Expr::Compare(again(e, |e| {
            let constant = is_constant(&e.expr) || e.ops.iter().all(|o| is_constant(&o.expr));
            let side = |side: &Expr<'a>| if constant { bounded(side) } else { walked(side) };
            let ops = e.ops.iter().map(|o| ast::CompareOp { op: o.op, expr: side(&o.expr) }).collect();
            ast::Compare { expr: side(&e.expr), ops }
        })),
        Expr::IfExpr(e) => Expr::IfExpr(again(e, |e| ast::IfExpr {
            test_expr: bounded(&e.test_expr),
            true_expr: bounded(&e.true_expr),
            false_expr: e.false_expr.as_ref().map(bounded),
        })),
        Expr::Filter(e) => Expr::Filter(again(e, |e| {
            let walks = DEEP_FILTERS.contains(&e.name) || !e.args.iter().all(has_constant);
            let input = e.expr.as_ref().map(|input| if walks { walked(input) } else { bounded(input) });
            ast::Filter { name: e.name, expr: input, args: arguments(&e.args) }
        })),
        Expr::Test(e) => Expr::Test(again(e, |e| {
            let walks = !e.args.iter().all(has_constant);
            let input = if walks { walked(&e.expr) } else { bounded(&e.expr) };
            ast::Test { name: e.name, expr: input, args: arguments(&e.args) }
        })),
        Expr::GetAttr(e) => {
            Expr::GetAttr(again(e, |e| ast::GetAttr { expr: bounded(&e.expr), name: e.name }))
        }
        Expr::GetItem(e) => Expr::GetItem(again(e, |e| ast::GetItem {
            expr: bounded(&e.expr),
            subscript_expr: walked(&e.subscript_expr),
        })),
        Expr::Call(e) => Expr::Call(again(e, call_again)),
        Expr::List(e) => Expr::List(again(e, |e| ast::List { items: e.items.iter().map(bounded).collect() })),
        Expr::Tuple(e) => {
            Expr::Tuple(again(e, |e| ast::Tuple { items: e.items.iter().map(bounded).collect() }))
        }
        Expr::Map(e) => Expr::Map(again(e, |e| ast::Map {
            keys: e.keys.iter().map(walked).collect(),
            values: e.values.iter().map(bounded).collect(),
        })),
    }
}

fn has_constant(argument: &CallArg<'_>) -> bool {
    match argument {
        CallArg::Pos(e) | CallArg::Kwarg(_, e) => is_constant(e),
        CallArg::PosSplat(_) | CallArg::KwargSplat(_) => false,
    }
}

fn arguments<'a>(arguments: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    let one = |argument: &CallArg<'a>| match argument {
        CallArg::Pos(e) => CallArg::Pos(walked(e)),
        CallArg::Kwarg(name, e) => CallArg::Kwarg(name, walked(e)),
        CallArg::PosSplat(e) => CallArg::PosSplat(walked(e)),
        CallArg::KwargSplat(e) => CallArg::KwargSplat(walked(e)),
    };
    arguments.iter().map(one).collect()
}

fn call_again<'a>(node: &ast::Call<'a>) -> ast::Call<'a> {
    let callee = match &node.expr {
        // A method of a container may walk it: `count`, `index`.
        Expr::GetAttr(e) => Expr::GetAttr(again(e, |e| {
            let walks = !node.args.iter().all(has_constant);
            ast::GetAttr { expr: if walks { walked(&e.expr) } else { bounded(&e.expr) }, name: e.name }
        })),
        other => rebuilt(other),
    };
    ast::Call { expr: callee, args: arguments(&node.args) }
}
