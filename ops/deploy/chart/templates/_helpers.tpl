{{- define "headrace.name" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "release %s: expected small letters, digits and hyphens, a letter first" .Release.Name) -}}
{{- end -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Of the check before an upgrade. Not the selector's: it is no pod of the release. */}}
{{- define "headrace.check" -}}
app.kubernetes.io/name: headrace-check
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "headrace.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end -}}

{{/* A setting's value as the environment has it: JSON for what is no text. */}}
{{- define "headrace.value" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* The annotations of what stops all pods before an upgrade or a rollback; a number says in which order. */}}
{{- define "headrace.stops" -}}
helm.sh/hook: pre-upgrade,pre-rollback
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* The environment that says what the job is told, of its pod and of the check before an upgrade. */}}
{{- define "headrace.environment" -}}
- name: HEADRACE_BROKERS
  value: {{ .Values.brokers | quote }}
- name: HEADRACE_WORKERS
  value: {{ .Values.workers | quote }}
- name: HEADRACE_HOME
  value: /var/lib/headrace
{{- range $name, $value := .Values.settings }}
- name: HEADRACE_{{ upper $name }}
  value: {{ include "headrace.value" $value | quote }}
{{- end }}
{{- range $name := list "secret_key" "dead_letter_key" }}
{{- if hasKey $.Values.secrets $name }}
- name: HEADRACE_{{ upper $name }}
  value: file:/etc/headrace/secrets/{{ $name }}
{{- end }}
{{- end }}
{{- range $name, $ref := .Values.secretEnv }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $ref.secret | quote }}
      key: {{ $ref.key | quote }}
{{- end }}
{{- end -}}
