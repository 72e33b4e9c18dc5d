// Package yamltext writes values as YAML from which every text comes back byte by
// byte. It takes the structs that yaml.v3 takes, and decides by itself how a text
// is written, as yaml.v3 writes some that it reads as others or not at all: a block
// loses an empty line at its beginning; a tab there is an error to it, and so is a
// key <<.
package yamltext

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Marshal writes v as a document.
func Marshal(v any) ([]byte, error) {
	n, err := Node(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// Node is v as yaml.v3 is to write it: what a MarshalYAML returns. Of the tags of
// struct fields it knows omitempty, inline and "-".
func Node(v any) (*yaml.Node, error) { return node(reflect.ValueOf(v)) }

func node(v reflect.Value) (*yaml.Node, error) {
	if v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, fmt.Errorf("a nil %s has no YAML", v.Type())
	}
	switch value := v.Interface().(type) {
	case *yaml.Node:
		return value, nil
	case yaml.Marshaler:
		got, err := value.MarshalYAML()
		if err != nil {
			return nil, err
		}
		return Node(got)
	case time.Time: // before its own MarshalText, of which YAML has none
	case encoding.TextMarshaler:
		text, err := value.MarshalText()
		if err != nil {
			return nil, err
		}
		return scalar(string(text))
	}
	switch v.Kind() {
	case reflect.Pointer:
		return node(v.Elem())
	case reflect.String:
		return scalar(v.String())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			break
		}
		n := &yaml.Node{Kind: yaml.MappingNode}
		return n, fields(n, v)
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			if err := add(n, key, v.MapIndex(key)); err != nil {
				return nil, err
			}
		}
		return n, nil
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			if err := add(n, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return n, nil
	}
	n := new(yaml.Node)
	return n, n.Encode(v.Interface())
}

// fields adds those of a struct to n.
func fields(n *yaml.Node, v reflect.Value) error {
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		field, err := v.Field(i), error(nil)
		switch {
		case name == "-" || !v.Type().Field(i).IsExported():
		case options == "inline":
			err = fields(n, field)
		case options == "omitempty" && empty(field):
		case name == "" || options != "" && options != "omitempty":
			err = fmt.Errorf("field %s of %s: its tag is not known here", v.Type().Field(i).Name, v.Type())
		default:
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name})
			err = add(n, field)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func empty(v reflect.Value) bool {
	return v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

func add(n *yaml.Node, values ...reflect.Value) error {
	for _, v := range values {
		child, err := node(v)
		if err != nil {
			return err
		}
		n.Content = append(n.Content, child)
	}
	return nil
}

// scalar decides how a text is written. Readable forms are for texts that come back
// from them wherever they stand; in double quotes every text does, and what is not
// UTF-8 stands as base64.
func scalar(text string) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Style: yaml.DoubleQuotedStyle}
	switch {
	case !utf8.ValidString(text):
		n.Tag, n.Value, n.Style = "!!binary", base64.StdEncoding.EncodeToString([]byte(text)), 0
	case strings.ContainsFunc(text, special):
	case strings.Contains(text, "\n"):
		if blockForm(text) {
			n.Style = yaml.LiteralStyle
		}
	default:
		// Without quotes where yaml.v3 takes it for no number and the like.
		var plain yaml.Node
		if err := plain.Encode(text); err != nil {
			return nil, err
		}
		if plain.Value == text && plain.Tag == n.Tag {
			n = &plain
		}
	}
	return n, nil
}

// blockForm tells whether a text of more than one line can be a literal block. How
// far a block is indented is seen at its first letter, if that is in its first line;
// blanks at the end of a line would not be seen by those who read or edit it.
func blockForm(text string) bool {
	return !strings.ContainsRune(" \t\n", rune(text[0])) &&
		!strings.HasSuffix(text, " ") && !strings.Contains(text, " \n")
}

// special tells of the characters that YAML does not take as they are, and of those
// that end a line to some reader of it.
func special(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r < ' ', r >= 0x7f && r < 0xa0: // with NEL, U+0085
		return true
	case r == 0x2028 || r == 0x2029 || r == 0xfeff || r == 0xfffe || r == 0xffff:
		return true
	}
	return r > 0xffff
}
