{{/* The cluster's name: that of the StatefulSet, of the Lease, and what is before the dash in the pods' names. */}}
{{- define "podgres.name" -}}
{{- if gt (len .Release.Name) 45 }}{{ fail (printf "release name %q is longer than 45 letters: pods and jobs are named after it" .Release.Name) }}{{ end -}}
{{- if contains "." .Release.Name }}{{ fail (printf "release name %q has a dot: it is the name of a Service" .Release.Name) }}{{ end -}}
{{- .Release.Name -}}
{{- end }}

{{- define "podgres.labels" -}}
app.kubernetes.io/name: podgres
app.kubernetes.io/instance: {{ include "podgres.name" . }}
{{- end }}

{{- define "podgres.secret" -}}
{{ .Values.existingSecret | default (include "podgres.name" .) }}
{{- end }}

{{- define "podgres.tlsSecret" -}}
{{ .Values.tls.existingSecret | default (printf "%s-tls" (include "podgres.name" .)) }}
{{- end }}

{{- define "podgres.user" -}}
{{ if .Values.alpine }}70{{ else }}999{{ end }}
{{- end }}

{{/* Where the program is: copied into the pod, or in the image. */}}
{{- define "podgres.program" -}}
{{ if .Values.oneImage }}podgres{{ else }}/podgres/podgres{{ end }}
{{- end }}

{{/* "true" where Kubernetes is older; nothing otherwise. */}}
{{- define "podgres.before" -}}
{{- if semverCompare (printf "<%s-0" (index . 1)) (index . 0).Capabilities.KubeVersion.Version }}true{{ end -}}
{{- end }}

{{- define "podgres.s3Secret" -}}
{{ .Values.backup.s3.existingSecret | default (printf "%s-backup-s3" (include "podgres.name" .)) }}
{{- end }}

{{- define "podgres.toBucket" -}}
{{- if and .Values.backup.enabled .Values.backup.s3.destination }}true{{ end -}}
{{- end }}

{{- define "podgres.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "podgres.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ include "podgres.user" . }}
runAsGroup: {{ include "podgres.user" . }}
fsGroup: {{ include "podgres.user" . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Who a member is, and where its files are. */}}
{{- define "podgres.environment" -}}
envFrom:
  - configMapRef: {name: {{ include "podgres.name" . }}-settings}
env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: PGDATA, value: /var/lib/postgresql/pgdata}
  - {name: POSTGRES_PASSWORD_FILE, value: /etc/podgres/secret/password}
{{- end }}

{{/* What PostgreSQL's containers mount. */}}
{{- define "podgres.serverMounts" -}}
{{- if not .Values.oneImage }}
- {name: program, mountPath: /podgres}
{{- end }}
- {name: run, mountPath: /run/podgres}
- {name: secret, mountPath: /etc/podgres/secret, readOnly: true}
- {name: configuration, mountPath: /etc/podgres/conf.d, readOnly: true}
- {name: data, mountPath: /var/lib/postgresql}
- {name: sockets, mountPath: /var/run/postgresql}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- end }}

{{/* The API's token: in bootstrap and in the sidecar, and not where SQL may run programs. */}}
{{- define "podgres.tokenMount" -}}
{{- if eq .Values.leadership "lease" }}
- {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}
{{- end }}

{{- define "podgres.tlsMount" -}}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /etc/podgres/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "podgres.s3Mount" -}}
{{- if include "podgres.toBucket" . }}
- {name: backup-s3, mountPath: /backup-s3, readOnly: true}
{{- end }}
{{- end }}

{{- define "podgres.settings" -}}
PODGRES_SERVICE: {{ include "podgres.name" . }}
PODGRES_LEADERSHIP: {{ .Values.leadership }}
{{- if .Values.tls.enabled }}
PODGRES_TLS_DIR: /etc/podgres/tls
{{- end }}
{{- if .Values.roleLabel.enabled }}
PODGRES_LABEL_POD: "true"
{{- end }}
{{- if .Values.endpointSlices }}
PODGRES_ENDPOINT_SLICES: "true"
{{- end }}
{{- if .Values.events }}
PODGRES_EMIT_EVENTS: "true"
{{- end }}
{{- if include "podgres.toBucket" . }}
PODGRES_ARCHIVE_DESTINATION: {{ .Values.backup.s3.destination | quote }}
PODGRES_S3_CREDENTIALS_FILE: /backup-s3/credentials
{{- with .Values.backup.s3.region }}
AWS_REGION: {{ . | quote }}
{{- end }}
{{- with .Values.backup.s3.endpoint }}
AWS_ENDPOINT_URL: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $key, $value := .Values.settings }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* The port of the bucket's endpoint. */}}
{{- define "podgres.s3Port" -}}
{{- $place := urlParse (.Values.backup.s3.endpoint | default "https://") -}}
{{- $port := regexFind ":[0-9]+$" $place.host | trimPrefix ":" -}}
{{ $port | default (ternary "80" "443" (eq $place.scheme "http")) }}
{{- end }}
