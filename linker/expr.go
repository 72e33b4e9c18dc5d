package linker

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
)

// An expression of a linker script is one of Go, too, once dots are letters: but for
// the precedence of operators, so that only those are taken which both group alike.

// dotLetter stands for the dot, which is the location counter and a part of names.
const dotLetter = "ꞏ"

// parseExpression parses an expression as lld prints it in a link map.
func parseExpression(text string) (ast.Expr, error) {
	tree, err := parser.ParseExpr(strings.ReplaceAll(quotedText.ReplaceAllString(text, `""`), ".", dotLetter))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		if outer, ok := n.(*ast.BinaryExpr); ok {
			for _, e := range []ast.Expr{outer.X, outer.Y} {
				if inner, ok := e.(*ast.BinaryExpr); ok && !groupAlike(outer.Op, inner.Op) {
					err = fmt.Errorf("%s: %s and %s without parentheses", text, outer.Op, inner.Op)
				}
			}
		}
		return true
	})
	return tree, err
}

var quotedText = regexp.MustCompile(`"[^"]*"`) // which nothing escapes

// groupAlike tells whether an operator within another one needs no parentheses in C
// nor in Go.
func groupAlike(outer, inner token.Token) bool {
	level := func(op token.Token) int {
		switch op {
		case token.LOR:
			return 1
		case token.LAND:
			return 2
		case token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ:
			return 3
		case token.ADD, token.SUB:
			return 4
		case token.MUL, token.QUO, token.REM:
			return 5
		}
		return 0
	}
	a, b := level(outer), level(inner)
	return outer == inner || a > 0 && b > 0 && (a < b || a == b && a > 3)
}

// namesIn are the symbols and sections that an expression names, the location counter
// (".") among them.
func namesIn(e ast.Expr) (names []string) {
	called := map[ast.Expr]bool{}
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			called[n.Fun] = true
			if name, ok := n.Fun.(*ast.Ident); ok && name.Name == "ALIGN" && len(n.Args) == 1 {
				names = append(names, ".")
			}
		case *ast.Ident:
			if !called[n] {
				names = append(names, strings.ReplaceAll(n.Name, dotLetter, "."))
			}
		}
		return true
	})
	return names
}

// evaluate computes an expression. value knows symbols and the location counter, and
// size output sections.
func evaluate(e ast.Expr, value, size func(name string) (uint64, error)) (uint64, error) {
	eval := func(e ast.Expr) (uint64, error) { return evaluate(e, value, size) }
	switch e := e.(type) {
	case *ast.ParenExpr:
		return eval(e.X)
	case *ast.BasicLit:
		if e.Kind == token.INT {
			return strconv.ParseUint(e.Value, 0, 64)
		}
	case *ast.Ident:
		return value(strings.ReplaceAll(e.Name, dotLetter, "."))
	case *ast.UnaryExpr:
		x, err := eval(e.X)
		switch e.Op {
		case token.SUB:
			return -x, err
		case token.TILDE:
			return ^x, err
		case token.NOT:
			return truth(x == 0), err
		}
	case *ast.BinaryExpr:
		x, err := eval(e.X)
		if err != nil {
			return 0, err
		}
		y, err := eval(e.Y)
		if err != nil {
			return 0, err
		}
		return operate(e.Op, x, y)
	case *ast.CallExpr:
		return call(e, value, size)
	}
	return 0, fmt.Errorf("a linker script's %T is not known", e)
}

func call(e *ast.CallExpr, value, size func(string) (uint64, error)) (uint64, error) {
	name, _ := e.Fun.(*ast.Ident)
	var args []uint64
	for _, a := range e.Args {
		if ident, ok := a.(*ast.Ident); ok && name != nil && name.Name == "SIZEOF" {
			return size(strings.ReplaceAll(ident.Name, dotLetter, "."))
		}
		if text, ok := a.(*ast.BasicLit); ok && text.Kind == token.STRING {
			continue // of an ASSERT
		}
		v, err := evaluate(a, value, size)
		if err != nil {
			return 0, err
		}
		args = append(args, v)
	}
	switch {
	case name == nil:
	case name.Name == "ABSOLUTE" && len(args) == 1:
		return args[0], nil
	case name.Name == "ALIGN" && len(args) == 1:
		dot, err := value(".")
		args = []uint64{dot, args[0]}
		if err != nil {
			return 0, err
		}
		fallthrough
	case name.Name == "ALIGN" && len(args) == 2:
		if n := args[1]; n > 0 && n&(n-1) == 0 {
			return (args[0] + n - 1) &^ (n - 1), nil
		}
	case name.Name == "ASSERT" && len(args) == 1:
		if args[0] == 0 {
			return 0, errAssert
		}
		return value(".")
	}
	return 0, errors.New("a linker script's call is not known, or not so")
}

// errAssert is an ASSERT of the linker script that does not hold.
var errAssert = errors.New("an assertion of the linker script does not hold")

func operate(op token.Token, x, y uint64) (uint64, error) {
	switch op {
	case token.ADD:
		return x + y, nil
	case token.SUB:
		return x - y, nil
	case token.MUL:
		return x * y, nil
	case token.QUO:
		if y != 0 {
			return x / y, nil
		}
	case token.REM:
		if y != 0 {
			return x % y, nil
		}
	case token.AND:
		return x & y, nil
	case token.OR:
		return x | y, nil
	case token.XOR:
		return x ^ y, nil
	case token.SHL:
		return x << y, nil
	case token.SHR:
		return x >> y, nil
	case token.EQL:
		return truth(x == y), nil
	case token.NEQ:
		return truth(x != y), nil
	case token.LSS:
		return truth(x < y), nil
	case token.LEQ:
		return truth(x <= y), nil
	case token.GTR:
		return truth(x > y), nil
	case token.GEQ:
		return truth(x >= y), nil
	case token.LAND:
		return truth(x != 0 && y != 0), nil
	case token.LOR:
		return truth(x != 0 || y != 0), nil
	}
	return 0, fmt.Errorf("%d %s %d: not known, or by zero", x, op, y)
}

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
