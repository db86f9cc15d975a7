package keys

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/keys/spec"
)

// The words that preimages and listings begin with. The number of an operation is raised when the same operation may
// give other files than before; that of the format when its text changes.
const (
	format  = "obx/1"
	baseOp  = "base/1"
	runOp   = "run/1"
	copyOp  = "copy/1"
	listing = "tree/1"
)

// preimage of a base: what its key hashes. The salt enters here, and thereby every key.
func (b Base) preimage(salt string) []byte {
	p := normalPlatform(b.Platform)
	out := []byte("(" + format + " " + baseOp)
	for _, f := range [][2]string{
		{"digest", string(b.Digest)},
		{"os", p.OS},
		{"arch", p.Architecture},
		{"variant", p.Variant},
		{"os.version", p.OSVersion},
		{"salt", salt},
	} {
		if f[1] != "" {
			out = appendField(out, f[0], f[1])
		}
	}
	return append(out, ')')
}

// ContentKey gives the key that a step has when the content of everything it uses is known: parent is the content key
// of the step before (or of the base), sources are the hashed sources of a copy from a build (ignored else). It equals
// Key when no copy from a build precedes it. Copies of the same files have the same content key wherever the files
// come from.
func (s *Step) ContentKey(parent ID, sources []Source) (ID, []byte) {
	if s.From == nil {
		sources = s.Sources
	}
	return s.key(parent, sources, true)
}

// key makes a step's preimage, and its key. A copy from a build names its files by content, or by the build's key.
func (s *Step) key(parent ID, sources []Source, byContent bool) (ID, []byte) {
	switch op := s.Op.(type) {
	case *spec.Run:
		full := append(s.runPreimage(op, parent), ')')
		return sha256.Sum256(full), full
	case *spec.Copy:
		full := s.copyPreimage(parent)
		if !byContent && s.From != nil {
			full = appendField(full, "from", s.From.Key().String())
			full = appendField(full, "src", cleanSources(op, isWindows(s.Stage.Base.Platform))...)
			if ex := exclusions(op); len(ex) > 0 {
				full = appendField(full, "exclude", ex...)
			}
			full = append(full, ')')
			return sha256.Sum256(full), full
		}
		short := append(slices.Clone(full), " (files"...)
		size := len(short)
		for i := range sources {
			size += textSize(&sources[i].Node)
		}
		full = append(slices.Grow(full, size), " (files"...)
		for i := range sources {
			full = appendFull(full, &sources[i].Node, maxLevels)
			short = appendShort(short, &sources[i].Node)
		}
		return sha256.Sum256(append(short, "))"...)), append(full, "))"...)
	}
	panic(fmt.Sprintf("keys: a step with operation %T", s.Op)) // New makes none
}

// runPreimage lacks the closing parenthesis.
func (s *Step) runPreimage(op *spec.Run, parent ID) []byte {
	c, def := s.Env, DefaultContext(s.Stage.Base.Platform)
	out := appendField([]byte("("+format+" "+runOp), "parent", parent.String())
	if !slices.Equal(c.Shell, def.Shell) {
		out = appendField(out, "shell", c.Shell...)
	}
	out = appendField(out, "command", op.Command)
	if c.Workdir != def.Workdir {
		out = appendField(out, "workdir", c.Workdir)
	}
	out = s.appendUser(out)
	if len(c.Env) > 0 {
		out = append(out, " (env"...)
		for _, v := range c.Env {
			out = appendPair(out, v.Name, v.Value)
		}
		out = append(out, ')')
	}
	if len(op.Network) > 0 {
		out = appendField(out, "network", op.Network...)
	}
	// In the order of the spec: it matters where one target is inside another.
	for _, f := range []struct {
		name   string
		mounts []spec.Mount
	}{{"secrets", op.Secrets}, {"caches", op.Caches}} {
		if len(f.mounts) > 0 {
			out = append(append(out, " ("...), f.name...)
			for _, m := range f.mounts {
				out = appendPair(out, m.ID, m.Target)
			}
			out = append(out, ')')
		}
	}
	return out
}

// copyPreimage lacks where the files come from, and the closing parenthesis.
func (s *Step) copyPreimage(parent ID) []byte {
	out := appendField([]byte("("+format+" "+copyOp), "parent", parent.String())
	out = s.appendUser(out)
	return appendField(out, "dst", s.Dst)
}

func (s *Step) appendUser(b []byte) []byte {
	switch u := s.Env.User; {
	case u == DefaultContext(s.Stage.Base.Platform).User:
		return b
	case u.Name != "":
		return appendField(b, "user", u.Name)
	default:
		return appendField(b, "user", strconv.Itoa(u.UID), strconv.Itoa(u.GID))
	}
}

// appendPair prints " (A B)".
func appendPair(b []byte, a, v string) []byte {
	b = appendAtom(append(b, " ("...), a)
	b = appendAtom(append(b, ' '), v)
	return append(b, ')')
}

// appendFull prints " (KIND NAME ...)" with the directories of so many levels expanded to their listings.
func appendFull(b []byte, n *Node, levels int) []byte {
	if n.Kind != fs.ModeDir || n.Digest != "" || levels == 0 {
		return appendShort(b, n)
	}
	b = appendAtom(append(b, " (dir "...), n.Name)
	if len(n.Children) == 0 {
		return append(b, " ())"...)
	}
	b = append(b, ' ')
	open := len(b) // where the first child puts the space before it
	for i := range n.Children {
		b = appendFull(b, &n.Children[i], levels-1)
	}
	b[open] = '('
	return append(b, "))"...)
}

// appendShort prints " (KIND NAME ...)" with the digest of its listing for a directory.
func appendShort(b []byte, n *Node) []byte {
	kind, end := " (file ", ")"
	switch {
	case n.Kind == fs.ModeSymlink:
		return appendField(b, "link", n.Name, n.Link)
	case n.Kind == fs.ModeDir:
		kind = " (dir "
	case n.Exec:
		end = " x)"
	}
	b = appendAtom(append(b, kind...), n.Name)
	b = append(append(b, ' '), contentDigest(n).Encoded()...)
	return append(b, end...)
}

// entrySize is about what one file takes: large trees grow no buffer while they are printed.
const entrySize = 2*sha256.Size + 40

func textSize(n *Node) int {
	size := entrySize
	for i := range n.Children {
		size += textSize(&n.Children[i])
	}
	return size
}

// contentDigest is a file's, or that of a directory's listing: the names of its children and what each is.
func contentDigest(n *Node) digest.Digest {
	if n.Digest != "" || n.Kind != fs.ModeDir {
		return n.Digest
	}
	list := make([]byte, 0, len("(")+len(listing)+entrySize*len(n.Children))
	list = append(append(list, '('), listing...)
	for i := range n.Children {
		list = appendShort(list, &n.Children[i])
	}
	return digest.FromBytes(append(list, ')'))
}

// A parsed is a preimage that has been read.
type parsed struct {
	op       string // "run/1"
	fields   []sexp // each a list that begins with its name; without files
	files    []Node // of a copy by content
	hasFiles bool
}

// read takes preimages of this format only. Fields that it does not know may stand in them.
func read(preimage []byte) (*parsed, error) {
	p, err := readParsed(preimage)
	if err != nil {
		return nil, fmt.Errorf("read preimage: %w", err)
	}
	return p, nil
}

func readParsed(preimage []byte) (*parsed, error) {
	s, err := parse(preimage)
	if err != nil {
		return nil, err
	}
	if len(s.list) < 2 || s.list[0].isList || s.list[1].isList {
		return nil, errors.New("it does not begin with a format and an operation")
	}
	if s.list[0].atom != format {
		return nil, fmt.Errorf("its format is %q, not %s", s.list[0].atom, format)
	}
	p := &parsed{op: s.list[1].atom}
	seen := make(map[string]bool)
	for _, f := range s.list[2:] {
		if len(f.list) == 0 || f.list[0].isList {
			return nil, errors.New("it has a field without a name")
		}
		name := f.list[0].atom
		if seen[name] {
			return nil, fmt.Errorf("field %q occurs twice", name)
		}
		seen[name] = true
		if name != "files" {
			p.fields = append(p.fields, f)
			continue
		}
		p.hasFiles = true
		if p.files, err = readNodes(f.list[1:], true); err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
	}
	return p, nil
}

// field gives the arguments of a field.
func (p *parsed) field(name string) ([]sexp, bool) {
	for _, f := range p.fields {
		if f.list[0].atom == name {
			return f.list[1:], true
		}
	}
	return nil, false
}

// print gives the text with the directories of so many levels expanded; 0 is the form that the key hashes. The files
// field is always the last.
func (p *parsed) print(levels int) []byte {
	b := appendAtom([]byte("("+format+" "), p.op)
	for _, f := range p.fields {
		b = f.append(append(b, ' '))
	}
	if p.hasFiles {
		b = append(b, " (files"...)
		for i := range p.files {
			b = appendFull(b, &p.files[i], levels)
		}
		b = append(b, ')')
	}
	return append(b, ')')
}

// readNodes reads a listing; the sources of a copy may repeat a name and have an order of their own.
func readNodes(list []sexp, sources bool) ([]Node, error) {
	nodes := make([]Node, len(list))
	for i, s := range list {
		n, err := readNode(s)
		if err != nil {
			return nil, err
		}
		if !sources && (n.Name == "" || i > 0 && n.Name <= nodes[i-1].Name) {
			return nil, fmt.Errorf("name %q is out of order", n.Name)
		}
		nodes[i] = n
	}
	return nodes, nil
}

func readNode(s sexp) (n Node, err error) {
	if len(s.list) < 3 || s.list[0].isList || s.list[1].isList {
		return n, fmt.Errorf("malformed entry %.100s", s)
	}
	n.Name = s.list[1].atom
	if n.Name == "." || n.Name == ".." || strings.ContainsAny(n.Name, "/\x00") {
		return n, fmt.Errorf("no file can have the name %q", n.Name)
	}
	kind, arg, rest := s.list[0].atom, s.list[2], s.list[3:]
	sum := digest.NewDigestFromEncoded(digest.SHA256, arg.atom)
	switch {
	case kind == "dir" && arg.isList && len(rest) == 0:
		n.Kind = fs.ModeDir
		n.Children, err = readNodes(arg.list, false)
		return n, err
	case arg.isList:
	case kind == "dir" && isHex(arg.atom) && len(rest) == 0:
		n.Kind, n.Digest = fs.ModeDir, sum
		return n, nil
	case n.Name == "": // only the root of a tree has no name
	case kind == "file" && isHex(arg.atom) && len(rest) == 0:
		n.Digest = sum
		return n, nil
	case kind == "file" && isHex(arg.atom) && len(rest) == 1 && !rest[0].isList && rest[0].atom == "x":
		n.Digest, n.Exec = sum, true
		return n, nil
	case kind == "link" && len(rest) == 0:
		n.Kind, n.Link = fs.ModeSymlink, arg.atom
		return n, nil
	}
	return n, fmt.Errorf("malformed entry %.100s", s)
}

// Sum recomputes a key from a preimage alone, expanded or collapsed. A record whose preimage does not give its key is
// not about that key.
func Sum(preimage []byte) (ID, error) {
	p, err := read(preimage)
	if err != nil {
		return ID{}, err
	}
	if !bytes.Equal(p.print(maxLevels), preimage) {
		return ID{}, errors.New("read preimage: files is not its last field")
	}
	return sha256.Sum256(p.print(0)), nil
}

// Collapse gives a preimage of the same key in at most limit bytes, or as few as there can be: it replaces directories
// by the digests of their listings, the deepest first. What was collapsed can still be compared, but not looked into.
func Collapse(preimage []byte, limit int) ([]byte, error) {
	if len(preimage) <= limit {
		return preimage, nil
	}
	p, err := read(preimage)
	if err != nil {
		return nil, err
	}
	tooLong := sort.Search(treeLevels(p.files), func(levels int) bool { return len(p.print(levels)) > limit })
	return p.print(max(0, tooLong-1)), nil
}

// treeLevels counts how deep expanded directories nest.
func treeLevels(nodes []Node) int {
	levels := 0
	for i := range nodes {
		if n := &nodes[i]; n.Kind == fs.ModeDir && n.Digest == "" {
			levels = max(levels, 1+treeLevels(n.Children))
		}
	}
	return levels
}

// Parent reads the parent's key out of a preimage of a step; ok is false for a base's preimage.
func Parent(preimage []byte) (parent ID, ok bool, err error) {
	p, err := read(preimage)
	if err != nil {
		return ID{}, false, err
	}
	arg, ok := p.field("parent")
	if !ok {
		return ID{}, false, nil
	}
	if len(arg) != 1 || arg[0].isList {
		return ID{}, false, errors.New("read preimage: malformed parent")
	}
	if parent, err = ParseID(arg[0].atom); err != nil {
		return ID{}, false, fmt.Errorf("read preimage: parent: %w", err)
	}
	return parent, true, nil
}
