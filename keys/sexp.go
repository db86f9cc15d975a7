package keys

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// A sexp is a parsed S-expression: a list, or an atom.
type sexp struct {
	list   []sexp
	atom   string
	isList bool
}

// maxLevels bounds how deep directories nest in a tree: as deep as a Linux path can name.
const maxLevels = 2048

// maxDepth bounds the nesting of what parse accepts: two lists for each directory of a tree, and those around it.
const maxDepth = 2*maxLevels + 8

var errTruncated = errors.New("it ends too early")

// parse reads exactly one S-expression in canonical form, and refuses any other spelling of it.
func parse(b []byte) (sexp, error) {
	p := parser{in: b}
	s, err := p.sexp(0)
	if err != nil {
		return sexp{}, fmt.Errorf("byte %d: %w", p.pos, err)
	}
	if p.pos != len(b) {
		return sexp{}, fmt.Errorf("byte %d: something follows the end", p.pos)
	}
	return s, nil
}

type parser struct {
	in  []byte
	pos int
}

func (p *parser) sexp(depth int) (sexp, error) {
	if p.pos == len(p.in) {
		return sexp{}, errTruncated
	}
	if p.in[p.pos] != '(' {
		a, err := p.atom()
		return sexp{atom: a}, err
	}
	if depth == maxDepth {
		return sexp{}, errors.New("lists are nested too deeply")
	}
	s := sexp{isList: true}
	for p.pos++; ; {
		switch {
		case p.pos == len(p.in):
			return sexp{}, errTruncated
		case p.in[p.pos] == ')':
			p.pos++
			return s, nil
		case len(s.list) > 0:
			if p.in[p.pos] != ' ' {
				return sexp{}, errors.New("expected a space or )")
			}
			p.pos++
		}
		e, err := p.sexp(depth + 1)
		if err != nil {
			return sexp{}, err
		}
		s.list = append(s.list, e)
	}
}

func (p *parser) atom() (string, error) {
	start := p.pos
	if p.in[start] != '"' {
		for p.pos < len(p.in) && isBare(p.in[p.pos]) {
			p.pos++
		}
		if p.pos == start {
			return "", errors.New("expected an atom or a list")
		}
		return string(p.in[start:p.pos]), nil
	}
	var a []byte
	for p.pos++; ; {
		if p.pos == len(p.in) {
			return "", errTruncated
		}
		c := p.in[p.pos]
		p.pos++
		if c == '"' {
			break
		}
		if c == '\\' {
			var err error
			if c, err = p.escape(); err != nil {
				return "", err
			}
		}
		a = append(a, c)
	}
	// That the canonical printer gives the same bytes again is the whole definition of canonical.
	if s := string(a); bytes.Equal(appendAtom(nil, s), p.in[start:p.pos]) {
		return s, nil
	}
	return "", errors.New("an atom that is not in canonical form")
}

func (p *parser) escape() (byte, error) {
	rest := p.in[p.pos:]
	if len(rest) == 0 {
		return 0, errTruncated
	}
	p.pos++
	switch rest[0] {
	case '"', '\\':
		return rest[0], nil
	case 'n':
		return '\n', nil
	case 't':
		return '\t', nil
	case 'x':
		if len(rest) < 3 {
			return 0, errTruncated
		}
		p.pos += 2
		hi, lo := strings.IndexByte(hexDigits, rest[1]), strings.IndexByte(hexDigits, rest[2])
		if hi >= 0 && lo >= 0 {
			return byte(hi<<4 | lo), nil
		}
	}
	return 0, errors.New("an unknown escape")
}

// append prints s in canonical form.
func (s sexp) append(b []byte) []byte {
	if !s.isList {
		return appendAtom(b, s.atom)
	}
	b = append(b, '(')
	for i, e := range s.list {
		if i > 0 {
			b = append(b, ' ')
		}
		b = e.append(b)
	}
	return append(b, ')')
}

func (s sexp) String() string { return string(s.append(nil)) }

const hexDigits = "0123456789abcdef"

// isBare tells the bytes of atoms that need no quotes.
func isBare(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("+-./:=@_%,~", c) >= 0
}

// appendAtom prints an atom in its only spelling.
func appendAtom(b []byte, s string) []byte {
	plain := s != ""
	for i := 0; plain && i < len(s); i++ {
		plain = isBare(s[i])
	}
	if plain {
		return append(b, s...)
	}
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < ' ' || c > '~':
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// appendField prints " (NAME ARG...)".
func appendField(b []byte, name string, args ...string) []byte {
	b = append(b, " ("...)
	b = append(b, name...)
	for _, a := range args {
		b = append(b, ' ')
		b = appendAtom(b, a)
	}
	return append(b, ')')
}
