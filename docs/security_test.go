package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Every test that the page on security names is in the package that it names.
func TestSecurityTests(t *testing.T) {
	packages := goPackages(t)
	tests := 0
	for line := range strings.Lines(page(t, "security").Markdown()) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 3 || strings.HasPrefix(line, "|---") || cells[2] == "test |" {
			continue
		}
		for group := range strings.SplitSeq(strings.TrimSuffix(cells[2], " |"), "; ") {
			if where, ok := strings.CutPrefix(group, "said in "); ok {
				if packages[where] == nil {
					t.Errorf("%q: there is no package %s", cells[0], where)
				}
				continue
			}
			where, names, _ := strings.Cut(group, ": ")
			for name := range strings.SplitSeq(names, ", ") {
				if tests++; !hasTest(t, packages, where, name) {
					t.Errorf("%q: there is no test %s in %s", cells[0], name, where)
				}
			}
		}
	}
	if tests < 100 {
		t.Errorf("the page names %d tests", tests)
	}
}

var scriptName = regexp.MustCompile(`^[a-z_]+$`)

// hasTest reports whether a test is where the page says: a function of a package, a script of the command line, or a test of the suite of executors.
func hasTest(t *testing.T, packages map[string]*goPackage, where, name string) bool {
	if where == "suite" {
		return packages["conformance"].suite[name]
	}
	if where == "cmd/obx" && scriptName.MatchString(name) {
		_, err := os.Stat(filepath.Join("../cmd/obx/testdata/script", name+".txtar"))
		return err == nil
	}
	var found []string
	for p := range packages {
		if p == where || !strings.Contains(where, "/") && path.Base(p) == where {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		t.Errorf("%s names the packages %q", where, found)
		return false
	}
	return len(packages[found[0]].funcs[name]) > 0
}

// A goPackage is what a directory of Go files has.
type goPackage struct {
	funcs map[string][]string // the files of each function and method, by F and T.F
	suite map[string]bool     // names in the tables of executor tests
}

// goPackages reads the Go files of the repository, by their directories.
func goPackages(t *testing.T) map[string]*goPackage {
	t.Helper()
	all := map[string]*goPackage{}
	err := filepath.WalkDir("..", func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		file, err := filepath.Rel("..", name)
		if err != nil {
			return err
		}
		file = filepath.ToSlash(file)
		p := all[path.Dir(file)]
		if p == nil {
			p = &goPackage{map[string][]string{}, map[string]bool{}}
			all[path.Dir(file)] = p
		}
		p.add(f, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (p *goPackage) add(f *ast.File, file string) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := receiver(fn) + fn.Name.Name
		p.funcs[name] = append(p.funcs[name], file)
		if typ := fn.Type.Results; typ == nil || len(typ.List) != 1 || !isTestTable(typ.List[0].Type) {
			continue
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || len(lit.Elts) == 0 {
				return true
			}
			if name, ok := lit.Elts[0].(*ast.BasicLit); ok && name.Kind == token.STRING {
				s, _ := strconv.Unquote(name.Value)
				p.suite[s] = true
			}
			return true
		})
	}
}

// isTestTable reports the type []executorTest.
func isTestTable(e ast.Expr) bool {
	a, ok := e.(*ast.ArrayType)
	if !ok {
		return false
	}
	of, ok := a.Elt.(*ast.Ident)
	return ok && of.Name == "executorTest"
}

// receiver is "T." of a method of T or *T, else "".
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return ""
	}
	typ := fn.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name + "."
	}
	return ""
}
