# What nobody has seen yet: obx on a real Windows. This script finds out, on a Windows Server 2022 or newer with the feature
# Containers, as an administrator:
#
#   powershell -ExecutionPolicy Bypass -File conformance\windows.ps1 -Cache registry.example/cache [-Image mcr.microsoft.com/windows/nanoserver:ltsc2022]
#
# It needs Go and containerd (https://github.com/containerd/containerd/releases, in C:\Program Files\containerd), and a
# registry that it may push to. Each line of the checklist says OK or FAILED; the exit status is the number of failures.
# Run it on a second machine with the same -Cache and -Second to see that it resumes what the first has built.
param(
	[Parameter(Mandatory)] [string] $Cache,
	[string] $Image = "mcr.microsoft.com/windows/nanoserver:ltsc2022",
	[string] $Containerd = "C:\Program Files\containerd\containerd.exe",
	[switch] $Second
)
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..")
$script:failures = 0

function Check([string] $what, [scriptblock] $do) {
	try {
		$global:LASTEXITCODE = 0
		& $do
		if ($LASTEXITCODE -ne 0) { throw "exit status $LASTEXITCODE" }
		Write-Host "OK      $what"
	} catch {
		$script:failures++
		Write-Host "FAILED  $what`: $_"
	}
}

Check "1. the feature Containers is there" {
	if (-not (Get-Service vmcompute -ErrorAction SilentlyContinue)) { throw "Install-WindowsFeature Containers, and restart" }
}
Check "2. containerd runs as a service" {
	if (-not (Get-Service containerd -ErrorAction SilentlyContinue)) { & $Containerd --register-service }
	Start-Service containerd
}
Check "3. there is a NAT network" {
	if (-not (Get-HnsNetwork | Where-Object Type -eq "nat")) { throw "New-HnsNetwork -Type NAT -Name nat" }
}
Check "4. obx builds" { go build -o bin\obx.exe .\cmd\obx }
Check "5. obx healthcheck finds nothing missing" { bin\obx.exe healthcheck --executor hcs }
Check "6. the tests that pass under Wine pass here" { go test ./keys/... ./layers ./executor/hcs }

$dir = Join-Path $env:TEMP "obx-windows"
New-Item -ItemType Directory -Force $dir | Out-Null
Set-Content (Join-Path $dir "file.txt") "copied"
$spec = Join-Path $dir "spec"
Set-Content $spec @"
((from $Image)
 (workdir "C:/build")
 (run (shell "echo first> first.txt"))
 (copy (src file.txt) (dst C:/build/copied/))
 (run (cache (c (target "C:/cache"))) (shell "echo x>> C:\\cache\\log && type copied\\file.txt"))
 (run (network host) (shell "ipconfig"))
 (run (secrets (token (target "C:/secrets/token"))) (shell "type C:\\secrets\\token && del first.txt"))
 (user (name ContainerUser))
 (run (shell "whoami && if exist first.txt exit 1")))
"@
Set-Content (Join-Path $dir "token") "secret"
$run = { bin\obx.exe run $spec $dir --executor hcs --cache $Cache --secret "token=$dir\token" @args }
# Build fails unless so many steps run.
function Build([int] $runs) {
	$done = & $run --progress json | ForEach-Object { $_ | ConvertFrom-Json } | Where-Object event -eq "done"
	if ($LASTEXITCODE -eq 0 -and $done.runs -ne $runs) { throw "$($done.runs) steps ran, $($done.hits) hit, want $runs to run" }
}
if ($Second) {
	Check "7. the second machine runs nothing: it finds all steps in the cache" { Build 0 }
	$text = (Get-Content $spec -Raw).TrimEnd()
	Set-Content $spec ($text.Substring(0, $text.Length - 1) + "`n (run (shell `"echo more`")))")
	Check "8. it goes on from what the first machine has built" { Build 1 }
} else {
	Check "7. a build runs: steps, a copy, a cache, a network, a secret, another user" { & $run }
	Check "8. again, nothing runs" { Build 0 }
	foreach ($isolation in "process", "hyperv") {
		Check "9. a step runs with --isolation $isolation" {
			bin\obx.exe run $spec $dir --executor hcs --isolation $isolation --secret "token=$dir\token" --no-cache
		}
	}
	Check "10. a killed obx leaves nothing for longer than until the next start" {
		$slow = Join-Path $dir "slow"
		Set-Content $slow "((from $Image) (run (network host) (shell `"ping -n 60 127.0.0.1`")))"
		$p = Start-Process -PassThru -NoNewWindow bin\obx.exe "run $slow --executor hcs"
		Start-Sleep 20
		Stop-Process -Force $p
		& $run
		$ctr = Join-Path (Split-Path $Containerd) "ctr.exe"
		foreach ($what in "containers", "leases") {
			$left = & $ctr -n obx $what ls -q
			if ($left) { throw "$what $left" }
		}
		$left = & $ctr -n obx snapshots --snapshotter windows ls | Where-Object { $_ -match "Active" }
		if ($left) { throw "snapshots $left" }
		if (Get-Process containerd-shim-runhcs-v1 -ErrorAction SilentlyContinue) { throw "a shim is left" }
		if (Get-HnsEndpoint | Where-Object Name -like "hcs-*") { throw "endpoints are left" }
	}
}
Write-Host "$($script:failures) failed"
exit $script:failures
